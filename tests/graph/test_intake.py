"""Models that ONNX Runtime runs and that are written otherwise than exporters do; and those that it could not run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import fixture_path
from onnx import TensorProto, helper, numpy_helper

from corp_onnx.errors import ModelError
from corp_onnx.graph import Model, load_model
from corp_onnx.graph.intake import MAX_CALLS
from corp_onnx.inspect import inspect_model
from corp_onnx.run.noise import random_feeds
from corp_onnx.run.probe import probe_graph
from corp_onnx.run.sessions import open_session
from corp_onnx.run.tapped import open_tapped

NAME = "timm_vit_ts17_unfused"
Change = Callable[[onnx.ModelProto], None]


def write(proto: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(proto, folder / "m.onnx")
    return folder / "m.onnx"


def changed(change: Change, folder: Path) -> Path:
    proto = onnx.load(fixture_path(NAME))
    change(proto)
    return write(proto, folder)


def weight(proto: onnx.ModelProto) -> TensorProto:
    return next(t for t in proto.graph.initializer if len(t.dims) == 2 and t.data_type == TensorProto.FLOAT)


def make_sparse(proto: onnx.ModelProto, flat: bool = True, inline: bool = False) -> onnx.SparseTensorProto:
    """Every number of a weight of half zeros, as a sparse one."""
    tensor = weight(proto)
    values = np.where(np.arange(np.prod(tensor.dims)) % 2, numpy_helper.to_array(tensor).ravel(), 0)
    idx = np.flatnonzero(values)
    sparse = proto.graph.sparse_initializer.add(dims=tensor.dims)
    sparse.values.CopyFrom(numpy_helper.from_array(values[idx].astype(np.float32), tensor.name))
    places = idx if flat else np.stack(np.unravel_index(idx, tuple(tensor.dims)), axis=1)
    sparse.indices.CopyFrom(numpy_helper.from_array(places.astype(np.int64), f"{tensor.name}_places"))
    if inline:
        node = helper.make_node("Constant", [], [tensor.name], sparse_value=sparse)
        proto.graph.node.insert(0, node)
        del proto.graph.sparse_initializer[:]
    proto.graph.initializer.remove(tensor)
    return sparse


def reverse_nodes(proto: onnx.ModelProto) -> None:
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def add_function(proto: onnx.ModelProto, body: list[onnx.NodeProto], name: str = "F") -> None:
    proto.functions.append(helper.make_function("own", name, ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    proto.functions[-1].opset_import.add(domain="own", version=1)


def call_function(proto: onnx.ModelProto, *bodies: list[str]) -> None:
    """The image goes through F0; each function calls, in a row, those of its list (none: Identity)."""
    for idx, callees in enumerate(bodies):
        names = ["a", *(f"t{i}" for i in range(max(len(callees), 1) - 1)), "b"]
        ops = [(callee, "own") for callee in callees] or [("Identity", "")]
        nodes = [helper.make_node(o, [names[i]], [names[i + 1]], domain=d) for i, (o, d) in enumerate(ops)]
        add_function(proto, nodes, f"F{idx}")
    (image,) = proto.graph.input
    for node in proto.graph.node:
        node.input[:] = ["called" if name == image.name else name for name in node.input]
    proto.graph.node.insert(0, helper.make_node("F0", [image.name], ["called"], domain="own"))
    proto.opset_import.add(domain="own", version=1)


def mix_bfloat16(proto: onnx.ModelProto) -> None:
    """One weight in bfloat16 behind a Cast, in a model of float32; value_info says its old type."""
    tensor = weight(proto)
    name, values = tensor.name, numpy_helper.to_array(tensor)
    half = helper.make_tensor(f"{name}_half", TensorProto.BFLOAT16, tensor.dims, values.ravel())
    proto.graph.initializer.remove(tensor)
    proto.graph.initializer.append(half)
    proto.graph.node.insert(0, helper.make_node("Cast", [half.name], [name], to=TensorProto.FLOAT))
    proto.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.BFLOAT16, tensor.dims))


def refer_to_function(proto: onnx.ModelProto) -> None:
    """Beside the value, which is what ONNX Runtime takes."""
    for attribute in (a for node in proto.graph.node for a in node.attribute):
        attribute.ref_attr_name = "theirs"


def put_weight_into_constant(proto: onnx.ModelProto) -> None:
    tensor = weight(proto)
    proto.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    proto.graph.initializer.remove(tensor)


class TestAccepted:
    @pytest.mark.parametrize(
        "change",
        [
            make_sparse,
            lambda proto: make_sparse(proto, flat=False),
            lambda proto: make_sparse(proto, inline=True),
            reverse_nodes,
            lambda proto: proto.graph.node.add(),
            lambda proto: proto.graph.initializer.add().CopyFrom(proto.graph.initializer[0]),
            lambda proto: call_function(proto, ["F1", "F2"], ["F2"], []),
            refer_to_function,
            mix_bfloat16,
            lambda proto: proto.metadata_props.extend(
                onnx.StringStringEntryProto(key="ours", value=value) for value in ("first", "last")
            ),
        ],
    )
    def test_answers_as_onnxruntime_gives_them(self, change: Change, tmp_path: Path) -> None:
        """The oracle is ONNX Runtime on the file itself."""
        path = changed(change, tmp_path)
        if change in (make_sparse,):
            assert onnx.load(path).graph.sparse_initializer
        model = load_model(path)
        feeds = random_feeds(model, 2)
        expected = open_session(path).run(None, feeds)[0]
        np.testing.assert_allclose(next(iter(open_tapped(model, []).run(feeds).values())), expected, rtol=1e-5)
        onnx.checker.check_model(model.proto)
        assert inspect_model(path).n_blocks == inspect_model(fixture_path(NAME)).n_blocks

    def test_domain_of_onnxruntime_that_is_not_imported(self, tmp_path: Path) -> None:
        proto = onnx.load(fixture_path("handmade_ms_attention"))
        kept = [o for o in proto.opset_import if o.domain != "com.microsoft"]
        del proto.opset_import[:]
        proto.opset_import.extend(kept)
        found = inspect_model(write(proto, tmp_path))
        assert found.units == inspect_model(fixture_path("handmade_ms_attention")).units

    @pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.BFLOAT16, TensorProto.STRING])
    def test_stale_types_are_not_believed(self, kind: int, tmp_path: Path) -> None:
        """ONNX Runtime does not look at those of Constants."""

        def spoil(proto: onnx.ModelProto) -> None:
            proto.CopyFrom(onnx.shape_inference.infer_shapes(proto))
            stored = {o for n in proto.graph.node if n.op_type == "Constant" for o in n.output}
            for value in proto.graph.value_info:
                if value.name in stored:
                    value.type.tensor_type.elem_type = kind
                    value.type.tensor_type.shape.dim.add(dim_value=77)

        path = changed(spoil, tmp_path)
        open_session(path)
        assert probe_graph(load_model(path)).types == probe_graph(load_model(fixture_path(NAME))).types

    def test_where_onnx_can_not_infer_types_onnxruntime_says_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        names = (NAME, "timm_vit_ts17_bf16", "hf_bert_ts17_eager_ortbertmha")
        models = [load_model(fixture_path(name)) for name in names]
        before = [probe_graph(model) for model in models]

        def fail(*_: object) -> None:
            raise onnx.shape_inference.InferenceError("[TypeInferenceError] no")

        monkeypatch.setattr(onnx.shape_inference, "infer_shapes", fail)
        after = [probe_graph(model) for model in models]
        assert after[0].types == before[0].types
        assert all(set(a.values) >= set(b.values) for a, b in zip(after, before, strict=True))


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            (lambda p: p.graph.ClearField("output"), "has no output; expected a model from images to answers"),
            (lambda p: p.ClearField("opset_import"), r"does not say which version .* \(it imports none\)"),
            (
                lambda p: p.opset_import[0].MergeFrom(helper.make_opsetid("org.example", 1)),
                r"does not say which version of ONNX's operators .* \(it imports org.example\)",
            ),
            (
                lambda p: p.graph.initializer.add(name=p.graph.initializer[0].name),
                "has two weights named '[^']+', with other numbers",
            ),
            (
                lambda p: p.graph.node[5].output.__setitem__(0, p.graph.node[4].output[0]),
                "is made by two nodes; expected one",
            ),
            (
                lambda p: p.graph.node.extend([helper.make_node("Not", [a], [b]) for a, b in ("xy", "yx")]),
                r"tensor 'x' is|its nodes read each other in a circle",
            ),
            (lambda p: p.graph.node.append(helper.make_node("Not", ["l"], ["l"])), "its nodes read each other in"),
            (lambda p: call_function(p, ["F0"]), "function 'F0' calls itself"),
            (lambda p: call_function(p, ["F1"], ["F0"]), "function 'F0' calls itself"),
            (lambda p: call_function(p, *[[f"F{i + 1}"] * 2 for i in range(40)], []), r"to \d{13} nodes, 41 calls"),
            (
                lambda p: call_function(p, *[[f"F{i + 1}"] for i in range(MAX_CALLS)], []),
                f"{MAX_CALLS + 1} calls deep, and at most",
            ),
            (
                lambda p: p.graph.node[0].attribute.add(name="pads", ref_attr_name="theirs"),
                r"Conv '[^']+' takes its pads from attribute 'theirs' of a function, and is in none",
            ),
            (lambda p: make_sparse(p).dims.__setitem__(0, 1), r"has \d+ values at places \[\d+\] that do not"),
            (lambda p: make_sparse(p).dims.__setitem__(0, 2**40), r"has shape \[1099511627776, \d+\]; expected a name"),
            (lambda p: make_sparse(p, flat=False).dims.append(2), r"at places \[\d+, 2\] that do not lie in it"),
            (lambda p: make_sparse(p).values.ClearField("raw_data"), r"weight '[^']+' has 0 bytes for \[\d+\] numbers"),
            (lambda p: p.graph.sparse_initializer.add(dims=[2]), r"sparse weight '' has shape \[2\]; expected a name"),
        ],
    )  # fmt: skip
    def test_in_one_sentence(self, change: Change, sentence: str, tmp_path: Path) -> None:
        path = changed(change, tmp_path)
        with pytest.raises(ModelError, match=rf"^{re.escape(str(tmp_path))}.*{sentence}"):
            load_model(path)

    def test_function_whose_call_does_not_fit(self, tmp_path: Path) -> None:
        def call_wrongly(proto: onnx.ModelProto) -> None:
            call_function(proto, [])
            proto.functions[0].ClearField("input")

        with pytest.raises(ModelError, match=r"can not be inlined \(Number of actual parameters .*\)\. Export"):
            load_model(changed(call_wrongly, tmp_path))

    @pytest.mark.parametrize("name", [b"/patch_embed/proj/Conv", b"batch", b"pytorch", b"onnx::MatMul_217", b"perm"])
    def test_names_that_are_not_utf8(self, name: bytes, tmp_path: Path) -> None:
        data = fixture_path(NAME).read_bytes()
        assert name in data
        (tmp_path / "m.onnx").write_bytes(data.replace(name, name[:-1] + b"\xff"))
        with pytest.raises(ModelError, match=r"m\.onnx: a name or text in it is not UTF-8 \(b'.*\\xff.*'\)\. Export"):
            load_model(tmp_path / "m.onnx")


def external(model: Path, **entries: object) -> Path:
    """A model whose first weight lies 64 bytes into `w.bin`."""
    proto = onnx.load(fixture_path(NAME))
    tensor = weight(proto)
    (model.parent / "w.bin").write_bytes(bytes(64) + tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in ({"location": "w.bin", "offset": 64} | entries).items():
        tensor.external_data.add(key=key, value=str(value))
    onnx.save(proto, model)
    return model


class TestExternal:
    def test_in_a_constant(self, tmp_path: Path) -> None:
        """A node may hold a weight that lies outside, too."""
        proto = onnx.load(external(tmp_path / "m.onnx"), load_external_data=False)
        put_weight_into_constant(proto)
        found = inspect_model(write(proto, tmp_path))
        assert found.units == inspect_model(fixture_path(NAME)).units

    @pytest.mark.filterwarnings("error")
    def test_entries_that_onnx_does_not_know(self, tmp_path: Path) -> None:
        """Nor does ONNX Runtime; onnx itself would warn."""
        with pytest.raises(ModelError, match="ONNX Runtime can not load it"):
            inspect_model(external(tmp_path / "m.onnx", colour="blue"))

    @pytest.mark.parametrize(
        ("entries", "sentence"),
        [
            ({"offset": -5}, r"w\.bin: has \d+ bytes, and weight '[^']+' is said to be \d+ from -5 on; copy"),
            ({"offset": 10**12}, r"w\.bin: has \d+ bytes, and weight '[^']+' is said to be \d+ from 1000000000000 on"),
            ({"offset": "x"}, r"w\.bin: weight '[^']+' can not be read \(its place is no number\)"),
            ({"length": -1}, r"w\.bin: has \d+ bytes, and weight '[^']+' is said to be -1 from 64 on"),
            ({"location": ""}, r"m\.onnx: weight '[^']+' is stored in '', which is not beside the model"),
            ({"location": "w" * 5000}, r"m\.onnx: weight '[^']+' is stored in 'w{80}', which is not beside"),
            ({"location": "w\0"}, r"m\.onnx: weight '[^']+' is stored in 'w.?', which is not beside"),
            ({"location": "/dev/zero"}, r"m\.onnx: weight '[^']+' is stored in '/dev/zero', which is not beside"),
        ],
    )
    def test_places_that_are_none(self, entries: dict[str, object], sentence: str, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=sentence):
            load_model(external(tmp_path / "m.onnx", **entries))

    def test_cut_while_running(self, tmp_path: Path) -> None:
        model = load_model(external(tmp_path / "m.onnx"))
        graph = probe_graph(model)
        name = weight_name(model)
        (tmp_path / "w.bin").write_bytes(b"short")
        with pytest.raises(ModelError, match=r"w\.bin: has 5 bytes, and weight '[^']+' is said to be \d+ from 64 on"):
            graph.constant(name)


def weight_name(model: Model) -> str:
    return next(t.name for t in model.proto.graph.initializer if t.data_location == TensorProto.EXTERNAL)
