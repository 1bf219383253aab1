"""A file, its message and its data flow: what is refused, what counts as stored, and copies that lose nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import ENTRIES, fixture_path, probed, runs_here
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from corp_onnx.errors import ModelError
from corp_onnx.graph import read_graph
from corp_onnx.graph.model import Model, batch_kind, file_size, hash_file, input_dims, load_model
from corp_onnx.graph.proto import feed_dtype, has_bfloat16, names_in_use, skeleton, to_float32, without_weights

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((4, 3)).astype(np.float32)


def make_model(
    nodes: list[onnx.NodeProto], *, stored: dict[str, np.ndarray] | None = None, inputs: tuple[str, ...] = ("x",),
    batch: int | str = "batch", opset: int = 17,
) -> onnx.ModelProto:  # fmt: skip
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 4]) for name in inputs]
    tensors = [numpy_helper.from_array(array, name) for name, array in (stored or {}).items()]
    graph = helper.make_graph(nodes, "g", values, [onnx.ValueInfoProto(name=nodes[-1].output[0])], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def product(weight: str = "w", x: str = "x") -> onnx.NodeProto:
    return helper.make_node("MatMul", [x, weight], ["y"])


def save(proto: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(proto, path)
    return path


class TestLoad:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"nothing\.onnx: no such file\. Give the path of an \.onnx file"):
            load_model(tmp_path / "nothing.onnx")

    @pytest.mark.parametrize("content", [b"not a model at all", b"\x00" * 64, b""])
    def test_garbage(self, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"not a readable ONNX file|no graph with nodes"):
            load_model(path)

    def test_missing_external_data(self, tmp_path: Path) -> None:
        """Trap 8: the file with the weights must be beside the model."""
        name = "timm_vit_ts17_external"
        lonely = tmp_path / fixture_path(name).name
        lonely.write_bytes(fixture_path(name).read_bytes())
        with pytest.raises(ModelError, match=rf"is stored in '{name}\.onnx\.data', which is not beside the model"):
            load_model(lonely)

    def test_external_weights_are_not_read(self) -> None:
        """Trap 8: path and not bytes."""
        path = fixture_path("timm_vit_ts17_external")
        model = load_model(path)
        outside = [t for t in model.proto.graph.initializer if t.data_location == TensorProto.EXTERNAL]
        assert outside
        assert not any(t.raw_data for t in outside)
        assert file_size(model) == path.stat().st_size + path.with_suffix(".onnx.data").stat().st_size

    def test_local_functions_are_inlined(self, tmp_path: Path) -> None:
        body = helper.make_node("MatMul", ["a", "b"], ["c"])
        function = helper.make_function("own", "Twice", ["a", "b"], ["c"], [body], [helper.make_opsetid("", 17)])
        proto = make_model([helper.make_node("Twice", ["x", "w"], ["y"], domain="own")], stored={"w": WEIGHT})
        proto.opset_import.append(helper.make_opsetid("own", 1))
        proto.functions.append(function)
        model = load_model(save(proto, tmp_path))
        assert [n.op_type for n in model.proto.graph.node] == ["MatMul"]

    def test_inputs_that_only_override_are_left_out(self, tmp_path: Path) -> None:
        """Trap 4: old exporters list initializers as inputs; a weight that is fed has no width."""
        proto = make_model([product()], stored={"w": WEIGHT})
        proto.ir_version = 3
        proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
        proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 3]))
        model = load_model(save(proto, tmp_path))
        assert list(input_dims(model)) == ["x"]
        assert model.proto.ir_version == 4
        onnx.checker.check_model(model.proto)
        assert read_graph(model).is_constant("w")

    def test_facts(self, tmp_path: Path) -> None:
        proto = make_model([product()], stored={"w": WEIGHT}, opset=18)
        proto.metadata_props.add(key="a", value="b")
        path = save(proto, tmp_path)
        model = load_model(path)
        assert (model.opset, model.metadata, model.folder) == (18, {"a": "b"}, tmp_path)
        assert model.sha256 == hash_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()
        assert input_dims(model) == {"x": (None, 4)}
        assert batch_kind(model) is None
        assert batch_kind(Model(make_model([product()], batch=3), path, "")) == 3

    def test_no_batch_without_dimensions(self, tmp_path: Path) -> None:
        proto = make_model([helper.make_node("Identity", ["x"], ["y"])])
        proto.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, []))
        assert batch_kind(load_model(save(proto, tmp_path))) is None


CHAINS = {
    "initializer": [],
    "constant": [],
    "identity": [helper.make_node("Identity", ["w0"], ["w"])],
    "transposed": [helper.make_node("Transpose", ["w0"], ["w"], perm=[1, 0])],
    "cast": [helper.make_node("Cast", ["w0"], ["w"], to=TensorProto.FLOAT)],
    "three": [
        helper.make_node("Cast", ["w0"], ["a"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["a"], ["b"], perm=[1, 0]),
        helper.make_node("Identity", ["b"], ["w"]),
    ],
}


class TestConstants:
    @pytest.mark.parametrize("chain", CHAINS)
    def test_stored_behind_what_exporters_leave(self, chain: str, tmp_path: Path) -> None:
        """Trap 4: Constant nodes, Identity, Transpose, Cast."""
        stored = {
            "transposed": {"w0": WEIGHT.T},
            "cast": {"w0": WEIGHT.astype(np.float16)},
            "three": {"w0": WEIGHT.T.astype(np.float16)},
            "identity": {"w0": WEIGHT},
            "constant": {},
        }.get(chain, {"w": WEIGHT})
        constant = [helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(WEIGHT))]
        nodes = [*CHAINS[chain], *(constant if chain == "constant" else []), product()]
        proto = make_model(nodes, stored={k: np.ascontiguousarray(v) for k, v in stored.items()})
        graph = read_graph(load_model(save(proto, tmp_path)))
        assert graph.is_constant("w")
        assert not graph.is_constant("x")
        assert not graph.is_constant("y")
        found = graph.constant("w")
        assert found is not None
        assert np.array_equal(found, WEIGHT.astype(np.float16) if chain in ("cast", "three") else WEIGHT)
        assert graph.constant("y") is None

    def test_what_depends_on_an_input_is_not_stored(self, tmp_path: Path) -> None:
        nodes = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Gather", ["s", "i"], ["n"])]
        nodes += [helper.make_node("RandomNormal", [], ["r"], shape=[2]), helper.make_node("Add", ["r", "r"], ["y"])]
        graph = read_graph(load_model(save(make_model(nodes, stored={"i": np.array(0)}), tmp_path)))
        assert [graph.is_constant(n) for n in ("i", "s", "n", "r", "y", "nothing")] == [True] + [False] * 5

    @pytest.mark.parametrize(
        ("op", "inputs", "expected"),
        [("Max", ["a", "b"], 5.0), ("Min", ["a", "b"], 2.5), ("Mod", ["a", "b"], 0.0), ("Ceil", ["b"], 3.0)],
    )
    def test_sizes_computed_from_stored_numbers_are_stored(
        self, op: str, inputs: list[str], expected: float, tmp_path: Path
    ) -> None:
        attrs = {"fmod": 1} if op == "Mod" else {}
        nodes = [helper.make_node(op, inputs, ["n"], **attrs), helper.make_node("Mul", ["x", "n"], ["y"])]
        stored = {"a": np.array(5.0, np.float32), "b": np.array(2.5, np.float32)}
        graph = read_graph(load_model(save(make_model(nodes, stored=stored), tmp_path)))
        assert graph.is_constant("n")
        assert graph.constant("n") == np.float32(expected)
        assert not graph.is_constant("y")

    def test_shared_chain_is_walked_once(self, tmp_path: Path) -> None:
        """Forty additions of a tensor to itself are two to the forty paths."""
        nodes = [helper.make_node("Add", [f"t{i}", f"t{i}"], [f"t{i + 1}"]) for i in range(40)]
        nodes.append(helper.make_node("Mul", ["x", "t40"], ["y"]))
        graph = read_graph(load_model(save(make_model(nodes, stored={"t0": np.ones(4, np.float32)}), tmp_path)))
        assert graph.is_constant("t40")
        found = graph.constant("t40")
        assert found is not None
        assert found[0] == 2.0**40

    def test_external(self) -> None:
        graph = read_graph(load_model(fixture_path("timm_vit_ts17_external")))
        name = next(t.name for t in graph.initializers.values() if t.data_location == TensorProto.EXTERNAL)
        whole = onnx.load(graph.model.path)  # reads the other file
        expected = numpy_helper.to_array(next(t for t in whole.graph.initializer if t.name == name))
        found = graph.constant(name)
        assert found is not None
        assert np.array_equal(found, expected)


def test_subgraphs_read_from_around_them(tmp_path: Path) -> None:
    own = numpy_helper.from_array(np.ones(1, np.float32), "own")
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    inner = helper.make_graph([helper.make_node("Add", ["outer", "own"], ["z"])], "g", [], [z], [own])
    nodes = [
        helper.make_node("Identity", ["x"], ["outer"]),
        helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner),
    ]
    graph = read_graph(load_model(save(make_model(nodes, stored={"c": np.array(True)}), tmp_path)))
    assert [(n.op, idx) for n, idx in graph.users("outer")] == [("If", -1)]
    assert graph.users("own") == ()
    assert graph.captured(graph.nodes[1]) == {"outer"}
    assert {"outer", "own", "z"} <= names_in_use(graph.model.proto)


def test_float_type_is_that_of_most_weights(tmp_path: Path) -> None:
    for kind, expected in ((np.float32, "float32"), (np.float16, "float16"), (np.float64, "float64")):
        small, large = np.ones(2, np.float32), np.ones(9, kind)
        value = numpy_helper.from_array(large)
        nodes = [helper.make_node("Constant", [], ["c"], value=value), helper.make_node("Identity", ["x"], ["y"])]
        graph = read_graph(load_model(save(make_model(nodes, stored={"w": small}), tmp_path)))
        assert graph.float_type == expected
        assert graph.n_parameters == 11
    assert probed("timm_vit_ts17_bf16")[0].float_type == "bfloat16"


def test_scalars_are_no_parameters(tmp_path: Path) -> None:
    stored = {"a": np.float32(2) * np.ones((), np.float32), "b": np.ones((2, 3), np.float32), "i": np.ones(5, np.int64)}
    graph = read_graph(load_model(save(make_model([product()], stored=stored), tmp_path)))
    assert graph.n_parameters == 6


class TestCopies:
    def test_without_weights_keeps_every_other_field(self) -> None:
        proto = load_model(fixture_path("timm_vit_dynamo18_shared")).proto
        light = without_weights(proto)
        assert len(proto.graph.initializer) > 0
        assert len(light.graph.initializer) == 0
        light.graph.initializer.extend(proto.graph.initializer)
        assert light.SerializeToString(deterministic=True) == proto.SerializeToString(deterministic=True)

    def test_skeleton_has_shapes_and_no_large_bytes(self) -> None:
        big = np.ones((4, 2000), np.float32)
        proto = make_model([product()], stored={"w": big, "i": np.arange(3)})
        light = skeleton(proto)
        assert light.ByteSize() < 1000
        inferred = onnx.shape_inference.infer_shapes(light, strict_mode=True)
        assert [d.dim_value for d in inferred.graph.output[0].type.tensor_type.shape.dim] == [0, 2000]
        stored = {t.name: t for t in light.graph.initializer}
        assert np.array_equal(numpy_helper.to_array(stored["i"]), np.arange(3))
        assert proto.graph.initializer[0].raw_data == big.tobytes()

    @pytest.mark.parametrize("name", ["timm_vit_ts17_bf16", "timm_vit_dynamo23_bf16"])
    def test_float32_twin_holds_the_same_numbers(self, name: str) -> None:
        """Trap 8: every bfloat16 is a float32."""
        proto = load_model(fixture_path(name)).proto
        before = proto.SerializeToString()
        twin = to_float32(proto, fixture_path(name).parent)
        assert has_bfloat16(proto)
        assert not has_bfloat16(twin)
        assert b"bfloat" not in onnx.printer.to_text(twin).encode()
        for ours, theirs in zip(twin.graph.initializer, proto.graph.initializer, strict=True):
            expected = numpy_helper.to_array(theirs)
            assert np.array_equal(
                numpy_helper.to_array(ours), expected.astype(np.float32) if theirs.data_type == 16 else expected
            )
        assert proto.SerializeToString() == before
        onnx.checker.check_model(twin, full_check=True)

    def test_float32_twin_of_casts_constants_and_subgraphs(self) -> None:
        half = helper.make_tensor("half", TensorProto.BFLOAT16, [4], [1.5, 2, 3, 4])
        inner = helper.make_graph(
            [helper.make_node("Cast", ["half"], ["z"], to=TensorProto.BFLOAT16)], "g", [],
            [helper.make_tensor_value_info("z", TensorProto.BFLOAT16, None)], [half],
        )  # fmt: skip
        nodes = [
            helper.make_node("Constant", [], ["k"], value=helper.make_tensor("", TensorProto.BFLOAT16, [1], [0.5])),
            helper.make_node("Cast", ["x"], ["xb"], to=TensorProto.BFLOAT16),
            helper.make_node("If", ["c"], ["i"], then_branch=inner, else_branch=inner),
            helper.make_node("Mul", ["xb", "k"], ["m"]),
            helper.make_node("Add", ["m", "i"], ["y"]),
        ]
        proto = make_model(nodes, stored={"c": np.array(True)})
        twin = to_float32(proto, Path())
        (y,) = ReferenceEvaluator(twin).run(None, {"x": np.ones((1, 4), np.float32)})  # type: ignore[misc]
        assert y.dtype == np.float32
        np.testing.assert_allclose(y, [[2.0, 2.5, 3.5, 4.5]])

    def test_type_to_feed(self) -> None:
        assert feed_dtype(TensorProto.BFLOAT16) == feed_dtype(TensorProto.FLOAT) == np.float32
        assert feed_dtype(TensorProto.FLOAT16) == np.float16
        assert feed_dtype(TensorProto.INT64) == np.int64


@pytest.mark.parametrize("name", [n for n in ENTRIES if runs_here(n)][::9])
def test_producers_and_users_are_the_edges(name: str) -> None:
    graph, _ = probed(name)
    edges = {(i, n.output) for n in graph.nodes for i in n.inputs if i}
    assert edges == {(t, n.output) for t, users in graph.consumers.items() for n, idx in users if idx >= 0}
    assert all(graph.nodes[n.position] is n and graph.producers[n.output] is n for n in graph.nodes)


@pytest.mark.long
@pytest.mark.parametrize("op", ["Identity", "Transpose"])
def test_chain_longer_than_the_stack(op: str, tmp_path: Path) -> None:
    """10,000 nodes between a weight and its product: each is asked for, the last one first."""
    n = 10_000
    names = ["w", *(f"w{i}" for i in range(1, n + 1))]
    chain = [helper.make_node(op, [names[i]], [names[i + 1]]) for i in range(n)]
    weight = np.arange(16, dtype=np.float32).reshape(4, 4)
    nodes = [*chain, product(names[-1])]
    graph = read_graph(load_model(save(make_model(nodes, stored={"w": weight}), tmp_path)))
    assert graph.is_constant(names[-1])
    assert not graph.is_constant("y")
    np.testing.assert_array_equal(graph.stored(names[-1]), weight)
    for name in names[::-1][::100]:  # none is folded from the start again
        assert graph.stored(name).shape == (4, 4)


def test_constant_that_can_not_be_computed(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["w", "target"], ["r"]), product("r")]
    stored = {"w": WEIGHT, "target": np.array([5, 5])}
    graph = read_graph(load_model(save(make_model(nodes, stored=stored), tmp_path)))
    with pytest.raises(ModelError, match=r"model\.onnx: Reshape 'r' of stored numbers can not be computed \(.*\)\.$"):
        graph.constant("r")
