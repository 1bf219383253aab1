"""Repositories for Triton: configurations against Triton's own schema, files, versions, labels, and what is refused.

A real server serves them in test_triton_server.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import json_format, text_format
from samples import (
    DEMO,
    EXTERNAL,
    FIXED,
    OPERATOR,
    TEXT,
    environment,
    fixture_path,
    listing,
    run_cli,
    write_sum,
)  # fmt: skip
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

import corp_onnx
from corp_onnx.cli import main
from corp_onnx.errors import InputError, MissingExtraError, ModelError, OptionError, OutputError
from corp_onnx.graph.model import hash_file
from corp_onnx.images.labels import LABELS_KEY
from corp_onnx.images.recipe import METADATA_KEY, Recipe
from corp_onnx.results import to_json
from corp_onnx.staging import MARK
from corp_onnx.tensorrt.engine import EngineResult, EngineTensor, description_path
from corp_onnx.triton import model as triton_model
from corp_onnx.triton.config import TritonSettings
from corp_onnx.triton.repository import TritonRepository, write_triton_repository

Run = pytest.CaptureFixture[str]
VIT = fixture_path(OPERATOR)


def read_config(root: Path, name: str) -> Any:
    """As the server reads it."""
    return text_format.Parse((root / name / "config.pbtxt").read_text(encoding="utf-8"), ModelConfig())


def make_config(path: Path, root: Path, **options: Any) -> Any:
    write_triton_repository([path], root, name="m", settings=TritonSettings(**options))
    return read_config(root, "m")


def tensors(config: Any) -> list[tuple[str, int, list[int]]]:
    return [(t.name, t.data_type, list(t.dims)) for t in (*config.input, *config.output)]


def set_metadata(source: Path, target: Path, **entries: str) -> Path:
    """A copy of a model with other metadata; dots of the keys are written as __."""
    proto = onnx.load(source)
    for name, value in entries.items():
        key = name.replace("__", ".")
        kept = [p for p in proto.metadata_props if p.key != key]
        del proto.metadata_props[:]
        proto.metadata_props.extend(kept)
        proto.metadata_props.add(key=key, value=value)
    onnx.save(proto, target)
    return target


def name_weights(path: Path, *locations: str) -> Path:
    """A model whose weights lie in one file that its tensors call by these names in turns."""
    (path.parent / locations[0]).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(onnx.load(VIT), path, save_as_external_data=True, location="stored", size_threshold=100)
    (path.parent / "stored").rename(path.parent / locations[0])
    proto = onnx.load(path, load_external_data=False)
    for i, tensor in enumerate(proto.graph.initializer):
        for entry in tensor.external_data:
            entry.value = locations[i % len(locations)] if entry.key == "location" else entry.value
    path.write_bytes(proto.SerializeToString())
    return path


def write_views(path: Path, rows: int) -> Path:
    """x [n, 8] -> y: `rows` of them for every sample, all axes dynamic; 0 takes one sample only."""
    value, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    shape = {0: [1, 8], 1: [-1, 8], 4: [-1, 2]}[rows]
    nodes = [
        node("Size", ["x"], ["size"]), node("Mul", ["size", "zero"], ["nothing"]),  # so that nobody infers the shape
        node("Add", ["shape", "nothing"], ["computed"]), node("Reshape", ["x", "computed"], ["y"]),
    ]  # fmt: skip
    stored = [onnx.numpy_helper.from_array(np.array(v), name) for name, v in (("shape", shape), ("zero", 0))]
    inputs, outputs = [value("x", onnx.TensorProto.FLOAT, ["n", 8])], [value("y", onnx.TensorProto.FLOAT, ["m", "k"])]
    graph = onnx.helper.make_graph(nodes, "views", inputs, outputs, stored)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def describe_engine(plan: Path, source: Path, *, maximum: int | None = None) -> Path:
    """An engine that is none, and what `corp-onnx engine` would write beside it."""
    plan.write_bytes(b"an engine")
    sides: dict[str, list[dict[str, Any]]] = {"inputs": [], "outputs": []}
    graph = onnx.load(source).graph
    for side, values in (("inputs", graph.input), ("outputs", graph.output)):
        for value in values:
            shape = [d.dim_value or None for d in value.type.tensor_type.shape.dim]
            bounds = [(size, *shape[1:]) if maximum and side == "inputs" else None for size in (1, maximum, maximum)]
            sides[side].append(asdict(EngineTensor(value.name, "float32", tuple(shape), *bounds)))
    description = {"source": str(source), "source_sha256": hash_file(source)} | sides
    assert description.keys() <= {field.name for field in fields(EngineResult)}
    description_path(plan).write_text(json.dumps(description | {"schema": 1}))
    return plan


FP32, FP16, INT64 = 11, 10, 9


class TestConfig:
    def test_the_whole_of_it(self, tmp_path: Path) -> None:
        """For the demo model, which carries its labels and its recipe."""
        config = make_config(DEMO, tmp_path)
        expected = """
            name: "m" platform: "onnxruntime_onnx" max_batch_size: 8
            version_policy { all {} }
            input { name: "input" data_type: TYPE_FP32 dims: [3, 32, 32] }
            output { name: "logits" data_type: TYPE_FP32 dims: [10] label_filename: "labels.txt" }
            instance_group { kind: KIND_CPU count: 1 }
            dynamic_batching {}
            model_warmup { name: "batch 1" batch_size: 1
              inputs { key: "input" value { data_type: TYPE_FP32 dims: [3, 32, 32] zero_data: true } } }
            model_warmup { name: "batch 8" batch_size: 8
              inputs { key: "input" value { data_type: TYPE_FP32 dims: [3, 32, 32] zero_data: true } } }
        """
        recipe = config.parameters.pop(METADATA_KEY).string_value
        assert config == text_format.Parse(expected, ModelConfig())
        assert Recipe.from_json(recipe) == Recipe((32, 32), 32, 1.0, mean=(0.5,) * 3, std=(0.5,) * 3)
        assert listing(tmp_path / "m") == ["1", "1/model.onnx", "config.pbtxt", "labels.txt"]
        assert (tmp_path / "m" / "1" / "model.onnx").read_bytes() == DEMO.read_bytes()
        assert (tmp_path / "m" / "labels.txt").read_text() == "".join(f"{digit}\n" for digit in range(10))

    def test_labels_are_cleaned(self, tmp_path: Path) -> None:
        """One a line, and nothing that a terminal obeys."""
        labels = ["\x1b[31mred\x07", "two\nlines", *"23456789"]
        path = set_metadata(DEMO, tmp_path / "m.onnx", **{LABELS_KEY.replace(".", "__"): json.dumps(labels)})
        make_config(path, tmp_path / "r")
        assert (tmp_path / "r" / "m" / "labels.txt").read_text().splitlines() == ["[31mred", "two lines", *"23456789"]

    @pytest.mark.parametrize("backend", ["onnxruntime", "python"])
    @pytest.mark.parametrize(
        ("fixture", "max_batch", "expected"),
        [
            (OPERATOR, 8, [("x", FP32, [3, 8, 8]), ("logits", FP32, [10])]),
            (FIXED, 0, [("x", FP32, [1, 3, 8, 8]), ("logits", FP32, [1, 10])]),
            ("timm_vit_ts17_fp16", 8, [("x", FP16, [3, 8, 8]), ("logits", FP16, [10])]),
            ("timm_vit_ts17_int8dynamic", 8, [("x", FP32, [3, 8, 8]), ("logits", FP32, [10])]),
            ("timm_deit_distilled_two_heads_ts17", 8,
             [("x", FP32, [3, 8, 8]), ("logits", FP32, [10]), ("logits_dist", FP32, [10])]),
            (TEXT, 8, [("input_ids", INT64, [-1]), ("attention_mask", INT64, [-1]), ("token_type_ids", INT64, [-1]),
                       ("logits", FP32, [3])]),
        ],
    )  # fmt: skip
    def test_batch_kinds_and_types(
        self, fixture: str, max_batch: int, expected: list[Any], backend: str, tmp_path: Path
    ) -> None:
        config = make_config(fixture_path(fixture), tmp_path, backend=backend)
        assert (config.platform, config.backend) == (
            ("onnxruntime_onnx", "") if backend != "python" else ("", "python")
        )
        assert config.max_batch_size == max_batch
        assert tensors(config) == expected
        assert config.HasField("dynamic_batching") == (max_batch > 0)
        assert [w.batch_size for w in config.model_warmup] == ([1, 8] if max_batch else [1])
        assert (METADATA_KEY in config.parameters) == (fixture != TEXT)
        files = ["1", "1/model.onnx", *(["1/model.py"] if backend == "python" else []), "config.pbtxt"]
        assert listing(tmp_path / "m") == files

    def test_one_number_a_sample_is_reshaped(self, tmp_path: Path) -> None:
        config = make_config(write_sum(tmp_path / "sum.onnx"), tmp_path / "r")
        assert tensors(config) == [("x", FP32, [2]), ("y", FP32, [1])]
        assert config.output[0].HasField("reshape")
        assert not config.input[0].HasField("reshape")

    @pytest.mark.parametrize("rows", [4, 0])
    def test_a_batch_that_is_none_is_not_joined(self, rows: int, tmp_path: Path) -> None:
        """The first axes are dynamic, and every image gives four rows; or more than one image are refused."""
        path = write_views(tmp_path / "views.onnx", rows)
        result = write_triton_repository([path], tmp_path / "r")
        (sentence,) = result.warnings
        assert sentence.startswith("views: requests are not joined, because several samples together do not give a row")
        config = read_config(tmp_path / "r", "views")
        assert config.max_batch_size == 0
        assert tensors(config)[0] == ("x", FP32, [-1, 8])
        assert [list(w.inputs["x"].dims) for w in config.model_warmup] == [[1, 8]]
        with pytest.raises(OptionError, match=r"views\.onnx: Triton joins requests only where several samples give"):
            write_triton_repository([path], tmp_path / "other", settings=TritonSettings(max_batch=4))
        with pytest.raises(ModelError, match="takes or gives something else than the other versions"):
            write_triton_repository([write_views(tmp_path / "one.onnx", 1), path], tmp_path / "other", name="m")

    def test_options(self, tmp_path: Path) -> None:
        config = make_config(VIT, tmp_path, max_batch=32, device="gpu", instances=3)
        assert config.max_batch_size == 32
        assert [(g.kind, g.count) for g in config.instance_group] == [(ModelInstanceGroup.KIND_GPU, 3)]
        assert not config.HasField("optimization")

    @pytest.mark.parametrize("precision", ["fp32", "fp16"])
    def test_accelerator(self, precision: str, tmp_path: Path) -> None:
        """The range of shapes is said, or ONNX Runtime builds an engine anew for every larger batch."""
        config = make_config(VIT, tmp_path, device="gpu", accelerator=precision, engine_cache="/cache")
        (found,) = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert found.name == "tensorrt"
        assert dict(found.parameters) == {
            "precision_mode": precision.upper(),
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": "/cache",
            "trt_profile_min_shapes": "x:1x3x8x8",
            "trt_profile_opt_shapes": "x:8x3x8x8",
            "trt_profile_max_shapes": "x:8x3x8x8",
        }

    @pytest.mark.parametrize("fixture", [FIXED, TEXT])
    def test_accelerator_without_a_range(self, fixture: str, tmp_path: Path) -> None:
        """Nothing varies, or something besides the batch does and its range is unknown."""
        config = make_config(fixture_path(fixture), tmp_path, device="gpu", accelerator="fp16")
        (found,) = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert not any("profile" in key for key in found.parameters)
        assert not any("cache" in key for key in found.parameters), "nobody said where"

    def test_engine(self, tmp_path: Path) -> None:
        (tmp_path / "vit.plan").write_bytes(b"an engine")
        config = make_config(tmp_path / "vit.plan", tmp_path / "r", backend="tensorrt", like=VIT)
        assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 8)
        assert tensors(config) == [("x", FP32, [3, 8, 8]), ("logits", FP32, [10])]
        assert config.instance_group[0].kind == ModelInstanceGroup.KIND_GPU
        assert (tmp_path / "r" / "m" / "1" / "model.plan").read_bytes() == b"an engine"

    def test_engine_with_its_description(self, tmp_path: Path) -> None:
        """As `corp-onnx engine` writes it: the largest batch is the engine's, recipe and labels those of its source."""
        plan = describe_engine(tmp_path / "digits.plan", DEMO, maximum=16)
        config = make_config(plan, tmp_path / "r", backend="tensorrt")
        assert config.max_batch_size == 16
        assert tensors(config) == [("input", FP32, [3, 32, 32]), ("logits", FP32, [10])]
        assert METADATA_KEY in config.parameters
        assert listing(tmp_path / "r" / "m") == ["1", "1/model.plan", "config.pbtxt", "labels.txt"]
        other = describe_engine(tmp_path / "smaller.plan", DEMO, maximum=4)
        write_triton_repository([plan, other], tmp_path / "r", name="pair", settings=TritonSettings("tensorrt"))
        assert read_config(tmp_path / "r", "pair").max_batch_size == 4

    def test_engine_of_a_fixed_batch(self, tmp_path: Path) -> None:
        plan = describe_engine(tmp_path / "m.plan", fixture_path(FIXED))
        config = make_config(plan, tmp_path / "r", backend="tensorrt")
        assert config.max_batch_size == 0
        assert tensors(config) == [("x", FP32, [1, 3, 8, 8]), ("logits", FP32, [1, 10])]

    def test_engine_whose_source_is_gone(self, tmp_path: Path) -> None:
        """Or another file by now: its recipe and labels are not taken for the engine's."""
        shutil.copy(DEMO, tmp_path / "digits.onnx")
        plan = describe_engine(tmp_path / "digits.plan", tmp_path / "digits.onnx", maximum=16)
        shutil.copy(VIT, tmp_path / "digits.onnx")
        config = make_config(plan, tmp_path / "r", backend="tensorrt")
        assert METADATA_KEY not in config.parameters
        assert not config.output[0].label_filename
        settings = TritonSettings("tensorrt", like=DEMO)
        write_triton_repository([plan], tmp_path / "r", name="m", settings=settings, force=True)
        assert METADATA_KEY in read_config(tmp_path / "r", "m").parameters

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"max_batch": 17}, r"digits\.plan: the engine was built for at most 16 samples, and --max-batch is 17"),
            ({"like": VIT}, r"digits\.plan: was not built from .*, whose tensors have other names"),
        ],
    )
    def test_engine_and_options_that_do_not_fit(self, options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
        plan = describe_engine(tmp_path / "digits.plan", DEMO, maximum=16)
        with pytest.raises(InputError, match=sentence):
            make_config(plan, tmp_path / "r", backend="tensorrt", **options)

    @pytest.mark.parametrize("text", ["[]", "{", '{"inputs": [{}]}'])
    def test_damaged_description(self, text: str, tmp_path: Path) -> None:
        plan = describe_engine(tmp_path / "m.plan", DEMO, maximum=16)
        description_path(plan).write_text(text)
        with pytest.raises(ModelError, match=r"m\.plan\.json: is no description that `corp-onnx engine` wrote"):
            make_config(plan, tmp_path / "r", backend="tensorrt")

    def test_sizes_that_nobody_can_guess_leave_the_warmup_out(self, tmp_path: Path) -> None:
        """A position embedding fixes the length that the file calls dynamic, at one that is not tried."""
        proto = onnx.load(write_sum(tmp_path / "m.onnx"))
        proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "length"
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(123, np.float32), "positions"))
        proto.graph.node.insert(0, onnx.helper.make_node("Add", ["x", "positions"], ["added"]))
        proto.graph.node[1].input[0] = "added"
        onnx.save(proto, tmp_path / "m.onnx")
        result = write_triton_repository([tmp_path / "m.onnx"], tmp_path / "r", name="m")
        assert result.warnings == ("m: no warm-up, because it ran on no size that was tried for its dynamic axes.",)
        assert not read_config(tmp_path / "r", "m").model_warmup


class TestFiles:
    def test_external_weights_keep_their_names(self, tmp_path: Path) -> None:
        write_triton_repository([fixture_path(EXTERNAL)], tmp_path, name="m")
        assert listing(tmp_path / "m" / "1") == ["model.onnx", f"{EXTERNAL}.onnx.data"]
        moved = onnx.load(tmp_path / "m" / "1" / "model.onnx")
        assert moved == onnx.load(fixture_path(EXTERNAL))

    def test_weights_in_a_folder_below(self, tmp_path: Path) -> None:
        (tmp_path / "weights").mkdir()
        onnx.save(
            onnx.load(VIT), tmp_path / "m.onnx", save_as_external_data=True, location="weights/all", size_threshold=100
        )
        write_triton_repository([tmp_path / "m.onnx"], tmp_path / "r")
        assert listing(tmp_path / "r" / "m" / "1") == ["model.onnx", "weights", "weights/all"]

    @pytest.mark.parametrize("backend", ["onnxruntime", "python"])
    @pytest.mark.parametrize(
        ("location", "sentence"),
        [
            ("model.onnx", "a server would take for the model or for a program; save it again with another name"),
            ("./model.onnx", "its weights lie in 'model.onnx', which a server would take"),
            ("./model.py", "its weights lie in 'model.py', which a server would take"),
            ("deep//model.py", "its weights lie in 'deep/model.py', which a server would take"),
            ("Model.PY", "its weights lie in 'Model.PY', which a server would take"),
            ("model.plan/all", "its weights lie in 'model.plan/all', which a server would take"),
            ("numpy.py", "its weights lie in 'numpy.py', which a server would take"),
            ("__pycache__/model.bin", "its weights lie in '__pycache__/model.bin', which a server would take"),
            ("deep/json.cpython-311.pyc", "which a server would take"),
            ("../all", ""),  # refused by ONNX Runtime, or by us
        ],
    )
    def test_weights_that_can_not_be_copied(self, location: str, sentence: str, backend: str, tmp_path: Path) -> None:
        """Nothing of a model's own gets the place of a file of ours, or one that the server's Python would import."""
        path = name_weights(tmp_path / "in" / "m.onnx", location)
        with pytest.raises(ModelError, match=rf"m\.onnx: .*{re.escape(sentence)}"):
            write_triton_repository([path], tmp_path / "r", settings=TritonSettings(backend=backend))
        assert not (tmp_path / "r").exists()

    def test_one_file_of_weights_in_two_spellings(self, tmp_path: Path) -> None:
        path = name_weights(tmp_path / "in" / "m.onnx", ".//all", "all")
        result = write_triton_repository([path], tmp_path / "r")
        assert listing(tmp_path / "r" / "m" / "1") == ["all", "model.onnx"]
        sizes = sum(file.stat().st_size for file in (tmp_path / "r" / "m" / "1").iterdir())
        assert result.models[0].versions[0].n_bytes == sizes

    def test_a_pair_has_the_names_of_its_files(self, tmp_path: Path) -> None:
        odd = shutil.copy(VIT, tmp_path / ".größe 1:2.pruned.onnx")
        result = write_triton_repository([VIT, odd], tmp_path / "r")
        assert [m.name for m in result.models] == [OPERATOR, "gr__e_1_2.pruned"]
        for model in result.models:
            assert read_config(tmp_path / "r", model.name).name == model.name

    def test_the_repository_is_shared(self, tmp_path: Path) -> None:
        """Other models stay, and with --force only the model of that name is replaced."""
        write_triton_repository([VIT, VIT], tmp_path, name="a")
        write_triton_repository([VIT], tmp_path, name="b")
        before = (tmp_path / "b" / "config.pbtxt").stat().st_mtime_ns
        write_triton_repository([DEMO], tmp_path, name="a", force=True)
        assert listing(tmp_path / "a") == ["1", "1/model.onnx", "config.pbtxt", "labels.txt"]
        assert (tmp_path / "b" / "config.pbtxt").stat().st_mtime_ns == before

    def test_model_py_is_ours_and_needs_nothing_of_ours(self, tmp_path: Path) -> None:
        make_config(VIT, tmp_path, backend="python")
        written = tmp_path / "m" / "1" / "model.py"
        assert written.read_bytes() == Path(triton_model.__file__).read_bytes()
        assert not re.search(r"^\s*(import|from) corp_onnx", written.read_text(), re.MULTILINE)


class TestVersions:
    def test_several_files_of_one_name(self, tmp_path: Path) -> None:
        other = shutil.copy(VIT, tmp_path / "other.onnx")
        result = write_triton_repository([VIT, other], tmp_path / "r", name="vit")
        assert [v.version for v in result.models[0].versions] == [1, 2]
        assert listing(tmp_path / "r" / "vit") == ["1", "1/model.onnx", "2", "2/model.onnx", "config.pbtxt"]
        assert read_config(tmp_path / "r", "vit").version_policy.HasField("all")

    @pytest.mark.parametrize("backend", ["onnxruntime", "python"])
    def test_a_version_is_added(self, backend: str, tmp_path: Path) -> None:
        """Behind the highest; the configuration, which somebody may have edited, is not written again."""
        write_triton_repository([VIT], tmp_path, name="vit", settings=TritonSettings(backend=backend, max_batch=4))
        (tmp_path / "vit" / "1").rename(tmp_path / "vit" / "7")
        path = tmp_path / "vit" / "config.pbtxt"
        path.write_text(f"# ours\n{path.read_text()}")
        result = write_triton_repository([VIT, VIT], tmp_path, name="vit", add=True)
        assert [v.version for v in result.models[0].versions] == [8, 9]
        assert result.models[0].max_batch_size == 4
        assert path.read_text().startswith("# ours\n")
        assert listing(tmp_path / "vit" / "9") == listing(tmp_path / "vit" / "7")

    def test_an_engine_is_added(self, tmp_path: Path) -> None:
        (tmp_path / "m.plan").write_bytes(b"an engine")
        make_config(tmp_path / "m.plan", tmp_path / "r", backend="tensorrt", like=VIT)
        write_triton_repository([tmp_path / "m.plan"], tmp_path / "r", add=True)
        assert (tmp_path / "r" / "m" / "2" / "model.plan").exists()

    def test_recipe_and_labels_of_one_are_those_of_all(self, tmp_path: Path) -> None:
        """A pruned file carries the recipe that it was pruned with, and the dense one that it came from may not."""
        recipe = Recipe((8, 8), crop_pct=0.5).to_json()
        named = json.dumps([f"c{i}" for i in range(10)])
        pruned = set_metadata(VIT, tmp_path / "p.onnx", corp_onnx__preprocessing=recipe, corp_onnx__labels=named)
        write_triton_repository([VIT, pruned], tmp_path / "r", name="m")
        assert read_config(tmp_path / "r", "m").parameters[METADATA_KEY].string_value == recipe
        assert (tmp_path / "r" / "m" / "labels.txt").read_text().splitlines()[9] == "c9"
        write_triton_repository([VIT], tmp_path / "r", name="m", add=True)

    @pytest.mark.parametrize("add", [False, True])
    @pytest.mark.parametrize(
        ("entries", "what"),
        [
            ({"corp_onnx__preprocessing": Recipe((8, 8), crop_pct=0.5).to_json()}, "prepares photographs by something"),
            ({"corp_onnx__labels": json.dumps([*"abcdefghij"])}, "names classes as something else"),
            (None, "takes or gives something else"),
        ],
    )
    def test_versions_that_differ(self, entries: dict[str, str] | None, what: str, add: bool, tmp_path: Path) -> None:
        ours = {"corp_onnx__preprocessing": Recipe((8, 8)).to_json(), "corp_onnx__labels": json.dumps([*"0123456789"])}
        first = set_metadata(VIT, tmp_path / "a.onnx", **ours)
        other = DEMO if entries is None else set_metadata(first, tmp_path / "b.onnx", **entries)
        if add:
            write_triton_repository([first], tmp_path / "r", name="m")
        before = listing(tmp_path)
        with pytest.raises(ModelError, match=rf"{other.name}: {what}.*serve it under a name of its own"):
            write_triton_repository([other] if add else [first, other], tmp_path / "r", name="m", add=add)
        assert listing(tmp_path) == before


class TestLabels:
    def test_from_a_file_in_its_own_order(self, tmp_path: Path) -> None:
        names = ["zebra", "ant, a small one", *(str(i) for i in range(8))]
        (tmp_path / "names.txt").write_text("\ufeff" + "\n".join(names), encoding="utf-8")
        config = make_config(VIT, tmp_path / "r", labels=tmp_path / "names.txt")
        assert config.output[0].label_filename == "labels.txt"
        assert (tmp_path / "r" / "m" / "labels.txt").read_text().splitlines() == names

    def test_a_file_means_the_same_as_elsewhere(self, tmp_path: Path, capfd: Run) -> None:
        """WordNet ids count in sorted order, words behind them are for people, tables of images are none."""
        ids = [f"n{100 - k:08d}" for k in range(10)]
        (tmp_path / "ids.txt").write_text("".join(f"{i}\n" for i in ids))
        (tmp_path / "words.txt").write_text("".join(f"{i} word {k}, other\n" for k, i in enumerate(ids)))
        (tmp_path / "names.json").write_text(json.dumps({k: f"name {k}" for k in reversed(range(10))}))
        (tmp_path / "truth.csv").write_text("".join(f"{k}.png,{k}\n" for k in range(10)))
        for file, expected in (
            ("ids.txt", sorted(ids)),
            ("words.txt", [f"word {k}, other" for k in range(10)]),
            ("names.json", [f"name {k}" for k in range(10)]),
        ):
            assert main(["triton", str(VIT), "-o", str(tmp_path / file[:-4]), "--name", "m",
                         "--labels", str(tmp_path / file)]) == 0  # fmt: skip
            assert (tmp_path / file[:-4] / "m" / "labels.txt").read_text().splitlines() == expected
            assert f"m, labels: 10 {'WordNet ids' if file == 'ids.txt' else 'names'} in " in capfd.readouterr().out
        with pytest.raises(InputError, match=r"truth\.csv: says the label of single images; expected the names"):
            make_config(VIT, tmp_path / "r", labels=tmp_path / "truth.csv")

    def test_a_file_in_another_order_than_the_model(self, tmp_path: Path) -> None:
        (tmp_path / "names.txt").write_text("".join(f"{9 - k}\n" for k in range(10)))
        sentence = r"names\.txt and .*demo_vit\.onnx have the same class names in different orders.*leave --labels out"
        with pytest.raises(InputError, match=sentence):
            make_config(DEMO, tmp_path / "r", labels=tmp_path / "names.txt")

    def test_on_the_output_that_has_as_many(self, tmp_path: Path) -> None:
        (tmp_path / "names.txt").write_text("a\n" * 20)
        config = make_config(fixture_path("hf_dinov2_dynamo18_sdpa"), tmp_path / "r", labels=tmp_path / "names.txt")
        assert [o.label_filename for o in config.output] == ["labels.txt", ""]

    def test_labels_of_the_file_that_fit_nothing(self, tmp_path: Path) -> None:
        odd = set_metadata(VIT, tmp_path / "m.onnx", corp_onnx__labels=json.dumps(["a", "b"]))
        result = write_triton_repository([odd], tmp_path / "r")
        assert result.warnings == ("m: no output has 2 classes, so its class names were left out.",)
        assert listing(tmp_path / "r" / "m") == ["1", "1/model.onnx", "config.pbtxt"]

    def test_a_name_with_a_line_break_stays_one_line(self, tmp_path: Path) -> None:
        odd = set_metadata(VIT, tmp_path / "m.onnx", corp_onnx__labels=json.dumps(["a\nb", *"123456789"]))
        write_triton_repository([odd], tmp_path / "r")
        assert (tmp_path / "r" / "m" / "labels.txt").read_text().splitlines()[:2] == ["a b", "1"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: vit.onnx, an engine, and a repository that holds `vit`."""
    shutil.copy(VIT, tmp_path / "vit.onnx")
    shutil.copy(fixture_path(FIXED), tmp_path / "fixed.onnx")
    (tmp_path / "copies").mkdir()
    shutil.copy(VIT, tmp_path / "copies" / "vit.onnx")
    (tmp_path / "vit.plan").write_bytes(b"an engine")
    (tmp_path / "three.txt").write_text("a\nb\nc\n")
    (tmp_path / "gap.txt").write_text("a\n\nc\n")
    (tmp_path / "text.onnx").write_text("no model")
    monkeypatch.chdir(tmp_path)
    write_triton_repository(["vit.onnx"], "repo")
    return tmp_path


def test_an_input_that_no_memory_holds(tmp_path: Path) -> None:
    """A spoilt shape; NumPy speaks of a value."""
    proto = onnx.load(fixture_path("timm_vit_ts17_unfused"))
    for axis in proto.graph.input[0].type.tensor_type.shape.dim[1:]:
        axis.dim_value = 2**40
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises((MemoryError, ModelError)):
        write_triton_repository([tmp_path / "m.onnx"], tmp_path / "new")
    assert listing(tmp_path) == ["m.onnx"]


class TestRefused:
    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            ("vit.onnx -o repo", r"repo/vit: exists already; --add makes a file its next version, --force replaces it"),
            ("nothing.onnx -o new", r"nothing\.onnx: no such file"),
            ("copies -o new", r"copies: is a folder"),
            ("no.plan -o new --backend tensorrt", r"no\.plan: no such file\. Give the path of an engine"),
            ("text.onnx -o new", r"text\.onnx: ONNX Runtime can not load it"),
            ("vit.onnx copies/vit.onnx -o new", r"vit\.onnx and copies/vit\.onnx would both be called 'vit'"),
            ("fixed.onnx -o new --max-batch 4", r"fixed\.onnx: Triton joins requests .* 'x' \[1, 3, 8, 8\] is"),
            ("vit.plan -o new", r"vit\.plan: is a TensorRT engine, and --backend onnxruntime runs ONNX files"),
            ("vit.plan -o new --backend python", r"vit\.plan: is a TensorRT engine, and --backend python runs ONNX"),
            ("vit.onnx -o new --backend tensorrt --like vit.onnx", r"vit\.onnx: --backend tensorrt serves engines"),
            ("vit.plan -o new --backend tensorrt", r"vit\.plan: vit\.plan\.json, which .* with --like"),
            ("vit.plan -o new --backend tensorrt --device cpu", r"--backend tensorrt runs on a GPU; leave"),
            ("vit.onnx -o new --like vit.onnx", r"--like is the file that an engine was built from; it needs"),
            ("vit.onnx -o new --tensorrt-accelerator fp16", r"is a part of --backend onnxruntime --device gpu"),
            ("vit.onnx -o new --engine-cache /e", r"--engine-cache is where --tensorrt-accelerator keeps"),
            ("vit.onnx fixed.onnx -o new --name m",
             r"fixed\.onnx: takes or gives something else than the other versions \(x float32 \[1, 3, 8, 8\] -> "
             r"logits float32 \[1, 10\], expected x float32 \[\?, 3, 8, 8\] -> logits float32 \[\?, 10\]\); serve"),
            ("vit.onnx -o new --name a/b", r"--name takes letters, digits, .*; found 'a/b'"),
            ("vit.onnx -o new --name .", r"--name takes letters"),
            ("vit.onnx -o new --labels three.txt", r"vit\.onnx: there are 3 class names, and no output has as many"),
            ("vit.onnx -o new --labels gap.txt", r"gap\.txt: expected a class name in every line"),
            ("vit.onnx -o new --labels no.txt", r"no\.txt: the labels file can not be read \(No such file"),
            ("vit.onnx -o vit.onnx", r"vit\.onnx: is not a folder; give the folder of a model repository"),
            ("vit.onnx -o vit.onnx/deep", r"vit\.onnx.*: can not be written|is not a folder"),
            ("vit.onnx -o /proc/1/repo", r"/proc/1: can not be written .*; give another -o"),
            ("vit.onnx -o repo --name new --add", r"so there is no model 'new' .* the repository has vit"),
            ("vit.onnx -o new --add", r"no model 'vit' to add a version to; the repository has none"),
            ("fixed.onnx -o repo --name vit --add", r"fixed\.onnx: takes or gives something else than .*\(x FP32 \["),
            ("vit.plan -o repo --name vit --add", r"vit\.plan: is a TensorRT engine"),
            ("vit.onnx -o repo --add --max-batch 4", r"--add leaves the model's config\.pbtxt as it is: give"),
            ("vit.onnx -o repo --add --force", r"--add leaves the model's config\.pbtxt as it is"),
        ],
    )  # fmt: skip
    def test_one_sentence_and_nothing_written(self, arguments: str, sentence: str, folder: Path, capfd: Run) -> None:
        before = listing(folder)
        assert main(["triton", *arguments.split()]) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert re.search(sentence, err), err
        assert err.startswith("corp-onnx: ")
        assert err.count("\n") == 1
        assert listing(folder) == before

    def test_bfloat16(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="holds bfloat16, which ONNX Runtime's backends do not serve"):
            write_triton_repository([fixture_path("timm_vit_ts17_bf16")], tmp_path / "r")

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ('platform: "no_such"', "is served by ''; versions are added for onnxruntime, tensorrt, openvino, python"),
            ('backend: "pytorch"', "is served by 'pytorch'"),
            ("platfrom: 1", r"config\.pbtxt is not a configuration that Triton reads \(.*no field named \"platfrom\""),
        ],
    )
    def test_config_of_somebody_else(self, text: str, sentence: str, folder: Path) -> None:
        (folder / "repo" / "vit" / "config.pbtxt").write_text(text)
        with pytest.raises(ModelError, match=sentence):
            write_triton_repository(["vit.onnx"], "repo", add=True)

    def test_config_that_is_no_text(self, folder: Path) -> None:
        (folder / "repo" / "vit" / "config.pbtxt").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ModelError, match="is not a configuration that Triton reads"):
            write_triton_repository(["vit.onnx"], "repo", add=True)

    def test_format_of_onnx_runtime(self, tmp_path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "m.ort")
        options.add_session_config_entry("session.save_model_format", "ORT")
        options.log_severity_level = 4
        onnxruntime.InferenceSession(VIT, options)
        with pytest.raises(ModelError, match=r"m\.ort: is a model of ONNX Runtime's own format; give the \.onnx file"):
            write_triton_repository([tmp_path / "m.ort"], tmp_path / "r")

    @pytest.mark.parametrize("key", [METADATA_KEY, LABELS_KEY])
    @pytest.mark.parametrize("text", ["{", "[" * 100_000, r'["\ud800"]'])
    def test_damaged_metadata(self, key: str, text: str, tmp_path: Path) -> None:
        odd = set_metadata(VIT, tmp_path / "m.onnx", **{key.replace(".", "__"): text})
        with pytest.raises(ModelError, match=rf"m\.onnx: .*{re.escape(key)}"):
            write_triton_repository([odd], tmp_path / "r")

    @pytest.mark.parametrize("options", [{"backend": "caffe"}, {"max_batch": 0}, {"instances": 0}])
    def test_settings_out_of_range(self, options: dict[str, Any]) -> None:
        with pytest.raises(OptionError, match=r"--[a-z-]+ must be"):
            TritonSettings(**options)

    def test_no_model(self, tmp_path: Path) -> None:
        with pytest.raises(OptionError, match="nothing to serve: give at least one model"):
            write_triton_repository([], tmp_path)

    def test_without_the_extra(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
        with pytest.raises(
            MissingExtraError, match=r"tritonclient is not installed: pip install 'corp-onnx\[triton\]'"
        ):
            write_triton_repository([VIT], tmp_path / "r")
        assert listing(tmp_path) == []

    def test_disk_full_at_the_second_model(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The first one is complete by then, and does not appear either."""
        copy = shutil.copyfile
        n_copied = 0

        def fill(source: Path, target: Path) -> Path:
            nonlocal n_copied
            n_copied += 1
            if n_copied == 2:
                raise OSError(28, "No space left on device")
            return copy(source, target)

        monkeypatch.setattr(shutil, "copyfile", fill)
        with pytest.raises(OutputError, match=r"could not be copied as model\.onnx \(No space left on device\)"):
            write_triton_repository([VIT, fixture_path(FIXED)], tmp_path / "r")
        assert listing(tmp_path) == []


class TestOpenVino:
    """After the README and the source of github.com/triton-inference-server/openvino_backend."""

    def test_the_whole_of_it(self, tmp_path: Path) -> None:
        """The batch is an axis like others, because that backend computes every batch as its largest."""
        config = make_config(DEMO, tmp_path, backend="openvino")
        expected = """
            name: "m" backend: "openvino" default_model_filename: "model.onnx" max_batch_size: 0
            version_policy { all {} }
            input { name: "input" data_type: TYPE_FP32 dims: [-1, 3, 32, 32] }
            output { name: "logits" data_type: TYPE_FP32 dims: [-1, 10] label_filename: "labels.txt" }
            instance_group { kind: KIND_CPU count: 1 }
            parameters { key: "NUM_STREAMS" value { string_value: "1" } }
            parameters { key: "PERFORMANCE_HINT" value { string_value: "LATENCY" } }
            model_warmup { name: "batch 1" batch_size: 1
              inputs { key: "input" value { data_type: TYPE_FP32 dims: [1, 3, 32, 32] zero_data: true } } }
        """
        assert Recipe.from_json(config.parameters.pop(METADATA_KEY).string_value).size == (32, 32)
        assert config == text_format.Parse(expected, ModelConfig())
        assert listing(tmp_path / "m") == ["1", "1/model.onnx", "config.pbtxt", "labels.txt"]

    def test_a_fixed_batch(self, tmp_path: Path) -> None:
        config = make_config(fixture_path(FIXED), tmp_path, backend="openvino")
        assert config.max_batch_size == 0
        assert [dims[0] for _, _, dims in tensors(config)] == [1, 1]

    @pytest.mark.usefixtures("folder")
    def test_options_reach_the_config(self, capfd: Run) -> None:
        """Its instances are on the CPU even where it computes on a GPU; several share one model, a stream for each."""
        options = "--backend openvino --openvino-threads 6 --instances 3 --device gpu --name other"
        assert main(["triton", "vit.onnx", "-o", "new", *options.split()]) == 0
        config = read_config(Path("new"), "other")
        said = {key: value.string_value for key, value in config.parameters.items() if key != METADATA_KEY}
        assert said == {"NUM_STREAMS": "3", "INFERENCE_NUM_THREADS": "6", "TARGET_DEVICE": "GPU"}
        assert (config.instance_group[0].kind, config.instance_group[0].count) == (2, 3)  # KIND_CPU
        assert "other: where the server's processor computes in bfloat16, OpenVINO's" in capfd.readouterr().err

    def test_a_version_is_added(self, tmp_path: Path) -> None:
        make_config(VIT, tmp_path, backend="openvino")
        result = write_triton_repository([VIT], tmp_path, name="m", add=True)
        assert [v.version for v in result.models[0].versions] == [2]
        assert listing(tmp_path / "m") == ["1", "1/model.onnx", "2", "2/model.onnx", "config.pbtxt"]

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"backend": "openvino", "max_batch": 8}, r"joins no requests, because .* Leave --max-batch out\."),
            ({"backend": "openvino", "openvino_threads": 0}, r"--openvino-threads is a number from 1 on"),
            ({"openvino_threads": 4}, r"a part of --backend openvino; give both\."),
            ({"backend": "openvino", "like": VIT}, r"it needs --backend tensorrt"),
        ],
    )
    def test_options_that_contradict(self, options: dict[str, Any], sentence: str) -> None:
        with pytest.raises(OptionError, match=sentence):
            TritonSettings(**options)

    def test_types_that_it_does_not_serve(self, tmp_path: Path) -> None:
        value, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
        for kind, shape, what in ((onnx.TensorProto.DOUBLE, ["n", 2], "is float64"), (1, [], "has no axis")):
            graph = onnx.helper.make_graph(
                [node("Identity", ["x"], ["y"])], "g", [value("x", kind, shape)], [value("y", kind, shape)]
            )
            model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
            onnx.save(model, tmp_path / "m.onnx")
            with pytest.raises(ModelError, match=f"'x' {what}, which Triton's OpenVINO backend does not serve"):
                make_config(tmp_path / "m.onnx", tmp_path / "r", backend="openvino")
        assert not (tmp_path / "r").exists()

    def test_what_an_openvino_that_is_here_says(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any) -> None:
            raise ModelError("vit.onnx: OpenVINO can not load it (no rule for Foo).")

        monkeypatch.setattr("corp_onnx.triton.entry.is_installed", lambda: True)
        monkeypatch.setattr("corp_onnx.triton.entry.open_program", refuse)
        result = write_triton_repository([VIT], tmp_path, settings=TritonSettings(backend="openvino"))
        assert result.warnings[1] == (
            "vit.onnx: OpenVINO can not load it (no rule for Foo). Another version of it in the server may."
        )


class TestVerb:
    def test_json_is_the_result_of_the_function(self, folder: Path, capfd: Run) -> None:
        assert main(["triton", "vit.onnx", "-o", "new", "--json"]) == 0
        printed = json.loads(capfd.readouterr().out)
        result = corp_onnx.write_triton_repository(["vit.onnx"], "new", force=True)
        assert isinstance(result, TritonRepository)
        assert printed == json.loads(to_json(result))
        (model,) = printed["models"]
        assert model["inputs"] == [{"name": "x", "data_type": "FP32", "dims": [3, 8, 8]}]
        assert model["versions"][0]["n_bytes"] == (folder / "vit.onnx").stat().st_size

    @pytest.mark.usefixtures("folder")
    def test_options_reach_the_config(self, capfd: Run) -> None:
        options = (
            "--backend onnxruntime --max-batch 3 --device gpu --instances 2 --tensorrt-accelerator fp16 "
            "--engine-cache /c --name other"
        )
        assert main(["triton", "vit.onnx", "-o", "new", *options.split()]) == 0
        config = read_config(Path("new"), "other")
        assert (config.max_batch_size, config.instance_group[0].count) == (3, 2)
        (found,) = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert (found.parameters["trt_engine_cache_path"], found.parameters["precision_mode"]) == ("/c", "FP16")
        assert "tritonserver --model-repository=new" in capfd.readouterr().out

    @pytest.mark.usefixtures("folder")
    def test_table(self, capfd: Run) -> None:
        assert main(["triton", "vit.onnx", "fixed.onnx", "-o", "new"]) == 0
        lines = [" ".join(line.split()) for line in capfd.readouterr().out.splitlines()]
        assert "vit onnxruntime x FP32 [3, 8, 8] logits FP32 [10] - 8" in lines
        assert "fixed onnxruntime x FP32 [1, 3, 8, 8] logits FP32 [1, 10] - fixed" in lines

    @pytest.mark.long
    def test_killed_run_leaves_nothing_in_the_repository(self, folder: Path) -> None:
        program = (
            "import shutil, sys, time\n"
            "def wait(*_):\n"
            "    print('here', flush=True)\n"
            "    time.sleep(60)\n"
            "shutil.copyfile = wait\n"
            "from corp_onnx.cli import main\n"
            "main(['triton', 'vit.onnx', '-o', 'repo', '--add'])\n"
        )
        before = listing(folder / "repo")
        run = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment(), text=True)
        assert run.stdout is not None
        assert run.stdout.readline() == "here\n"
        run.kill()
        run.communicate(timeout=60)
        assert listing(folder / "repo") == before
        assert len(list(folder.glob(f"{MARK}*"))) == 1
        assert run_cli("triton", "vit.onnx", "-o", "repo", "--add", cwd=folder).returncode == 0
        assert not list(folder.glob(f"{MARK}*"))


class Tensor:
    """What the server hands to model.py and takes from it."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self.array = name, array

    def as_numpy(self) -> np.ndarray:
        return self.array


class Request(dict[str, np.ndarray]):
    """Arrays by name; the outputs that are wanted."""

    wanted = ("logits",)

    def requested_output_names(self) -> tuple[str, ...]:
        return self.wanted


STAND_IN = SimpleNamespace(
    Tensor=Tensor,
    TritonError=str,
    InferenceResponse=lambda output_tensors=(), error=None: SimpleNamespace(tensors=output_tensors, error=error),
    get_input_tensor_by_name=lambda request, name: Tensor(name, request[name]) if name in request else None,
)
"""For triton_python_backend_utils, which exists in a server only."""


class TestModelPy:
    """The file that runs in the server's Python backend, on a stand-in for what the server gives it."""

    def start(
        self, fixture: str, root: Path, monkeypatch: pytest.MonkeyPatch, instances: int = 1
    ) -> tuple[Any, list[int]]:
        """An instance, and the number of samples of each of its runs."""
        monkeypatch.setitem(sys.modules, "triton_python_backend_utils", STAND_IN)
        config = make_config(fixture_path(fixture), root, backend="python", instances=instances)
        as_dict = json_format.MessageToDict(config, preserving_proto_field_name=True)
        as_dict["max_batch_size"] = config.max_batch_size  # a zero is left out there, and the server writes it
        model = triton_model.TritonPythonModel()
        model.initialize({
            "model_repository": str(root / "m"), "model_version": "1", "model_instance_kind": "GPU",
            "model_instance_device_id": "0", "model_config": json.dumps(as_dict),
        })  # fmt: skip
        runs: list[int] = []
        session = model.session

        def run(names: list[str], feeds: dict[str, np.ndarray]) -> Any:
            runs.append(len(next(iter(feeds.values()))))
            return session.run(names, feeds)

        model.session = SimpleNamespace(run=run, options=session.get_session_options())
        return model, runs

    def test_requests_are_joined_and_split(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model, runs = self.start(OPERATOR, tmp_path, monkeypatch)
        rng = np.random.default_rng(0)
        requests = [Request(x=rng.standard_normal((n, 3, 8, 8), dtype=np.float32)) for n in (1, 3, 2)]
        responses = model.execute(requests)
        assert runs == [6]
        for request, response in zip(requests, responses, strict=True):
            (tensor,) = response.tensors
            np.testing.assert_allclose(tensor.array, model.session.run(None, dict(request))[0], rtol=1e-5, atol=1e-6)

    def test_one_bad_request_fails_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model, runs = self.start(TEXT, tmp_path, monkeypatch)
        good = {name: np.ones((2, 5), np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
        bad = good | {"input_ids": np.full((1, 5), 10**6), **{n: np.ones((1, 5), np.int64) for n in list(good)[1:]}}
        first, second, third = model.execute([Request(good), Request(bad), Request(good)])
        assert runs == [5, 2, 1, 2]
        assert first.error is None
        assert second.error.startswith("ONNX Runtime failed: ")
        np.testing.assert_array_equal(first.tensors[0].array, third.tensors[0].array)

    @pytest.mark.parametrize(
        ("arrays", "sentence"),
        [
            ({}, r"input 'x' is missing; the model takes 'x' float32 \["),
            ({"x": np.zeros((1, 3, 8, 9), np.float32)}, r"input 'x' is float32 \[1, 3, 8, 9\]; the model takes"),
            ({"x": np.zeros((1, 3, 8, 8))}, r"input 'x' is float64 \[1, 3, 8, 8\]; the model takes 'x' float32"),
            ({"x": np.zeros((3, 8, 8), np.float32)}, r"input 'x' is float32 \[3, 8, 8\]"),
            ({"x": np.zeros((0, 3, 8, 8), np.float32)}, r"input 'x' is float32 \[0, 3, 8, 8\]"),
            ({"x": None}, r"input 'x' is object \[\]"),
        ],
    )
    def test_a_wrong_request_has_no_part_in_the_batch(
        self, arrays: dict[str, Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, runs = self.start(OPERATOR, tmp_path, monkeypatch)
        good = [np.full((n, 3, 8, 8), n, np.float32) for n in (2, 1)]
        first, wrong, last = model.execute([Request(x=good[0]), Request(arrays), Request(x=good[1])])
        assert runs == [3], "the good ones are joined"
        assert re.match(sentence, wrong.error), wrong.error
        for response, x in ((first, good[0]), (last, good[1])):
            assert response.error is None
            np.testing.assert_allclose(response.tensors[0].array, model.session.run(None, {"x": x})[0], atol=1e-6)

    def test_inputs_of_different_numbers_of_samples(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Joined, the surplus of one request would be taken for the next one's."""
        model, runs = self.start(TEXT, tmp_path, monkeypatch)
        odd = {
            n: np.ones((1 + i, 5), np.int64) for i, n in enumerate(("input_ids", "attention_mask", "token_type_ids"))
        }
        (response,) = model.execute([Request(odd)])
        assert response.error.startswith("the inputs are of different numbers of samples ('input_ids' 1, 'attention_")
        assert runs == []

    def test_only_what_is_alike_is_joined(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Texts of 5 and of 7 tokens; each gets its own answer, in the order of the requests."""
        model, runs = self.start(TEXT, tmp_path, monkeypatch)
        names = ("input_ids", "attention_mask", "token_type_ids")
        requests = [Request({name: np.full((1, n), 1, np.int64) for name in names}) for n in (5, 7, 5, 7)]
        requests[2]["input_ids"] += 3
        responses = model.execute(requests)
        assert runs == [2, 2]
        for request, response in zip(requests, responses, strict=True):
            np.testing.assert_allclose(
                response.tensors[0].array, model.session.run(None, dict(request))[0], rtol=1e-5, atol=1e-6
            )

    def test_rows_that_nobody_can_assign(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Several rows for an image: joined, and cut by requests, the first got one row and the second all others."""
        model, runs = self.start(OPERATOR, tmp_path, monkeypatch)
        once = model.session.run
        model.session.run = lambda names, feeds: [np.repeat(result, 4, axis=0) for result in once(names, feeds)]
        requests = [Request(x=np.full((n, 3, 8, 8), n, np.float32)) for n in (1, 2)]
        responses = model.execute(requests)
        assert runs == [3, 1, 2]
        assert [response.tensors[0].array.shape for response in responses] == [(4, 10), (8, 10)]

    def test_fixed_batch_runs_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model, runs = self.start(FIXED, tmp_path, monkeypatch)
        request = Request(x=np.zeros((1, 3, 8, 8), np.float32))
        assert len(model.execute([request, request])) == 2
        assert runs == [1, 1]

    @pytest.mark.parametrize(("instances", "n_threads"), [(1, 0), (2, 3), (8, 1)])
    def test_instances_share_the_cores(
        self, instances: int, n_threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """0 is ONNX Runtime's own choice: all of them."""
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
        model, _ = self.start(OPERATOR, tmp_path, monkeypatch, instances)
        assert model.session.options.intra_op_num_threads == n_threads

    def test_only_wanted_outputs_are_given(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model, _ = self.start("timm_deit_distilled_two_heads_ts17", tmp_path, monkeypatch)
        request = Request(x=np.zeros((1, 3, 8, 8), np.float32))
        request.wanted = ("logits_dist",)
        (response,) = model.execute([request])
        assert [t.name for t in response.tensors] == ["logits_dist"]
