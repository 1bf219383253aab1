"""Export: the torch-free parts with a PyTorch and a timm made of NumPy, and the real thing (slow) where it is there.

The stand-ins hold one linear model. What they stand for is small: names, weights by name, a forward pass and an
exporter that writes a file; everything else of `export_model` is real, ONNX Runtime included.
"""

from __future__ import annotations

import contextlib
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from reports import MACHINE
from schemas import require_valid

from corp_onnx.cli import main
from corp_onnx.errors import CheckFailedError, InputError, MissingExtraError, OptionError, OutputError
from corp_onnx.graph.model import load_model
from corp_onnx.images.labels import LABELS_KEY
from corp_onnx.images.recipe import METADATA_KEY, Recipe
from corp_onnx.inspect import inspect_model
from corp_onnx.results import to_json
from corp_onnx.zoo.catalogue import build_model, check_name
from corp_onnx.zoo.export import ExportSettings, default_output, export_model

SIZE = (3, 4, 4)


class Tensor:
    """What export reads of a torch.Tensor."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape = array, array.shape

    def numpy(self) -> np.ndarray:
        return self.array

    def numel(self) -> int:
        return self.array.size


class Module:
    """Flatten, then a linear head: logits = x W' + b."""

    def __init__(self, num_classes: int = 5, **config: Any) -> None:
        rng = np.random.default_rng(1)
        self.num_classes = num_classes
        weight = rng.standard_normal((num_classes, int(np.prod(SIZE)))).astype(np.float32)
        self.state = {"head.weight": Tensor(weight), "head.bias": Tensor(np.ones(num_classes, np.float32))}
        self.pretrained_cfg: dict[str, Any] = {"classifier": "head", "hf_hub_id": "timm/toy", **config}

    def __call__(self, x: Tensor) -> Tensor:
        flat = x.array.reshape(len(x.array), -1)
        return Tensor(flat @ self.state["head.weight"].array.T + self.state["head.bias"].array)

    def eval(self) -> Module:
        return self

    def requires_grad_(self, wanted: bool) -> None:
        assert not wanted

    def parameters(self) -> list[Tensor]:
        return list(self.state.values())

    def state_dict(self) -> dict[str, Tensor]:
        return self.state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.state = dict(state)


def trace(module: Module, args: tuple[Tensor], path: str, **options: Any) -> None:
    """A file as PyTorch's exporters write it: a stack trace in the node, weights beside it when asked for."""
    batch = "batch" if options.get("dynamic_shapes") or options.get("dynamic_axes") else args[0].shape[0]
    (taken,), (given,) = options["input_names"], options["output_names"]
    node = helper.make_node("Gemm", ["flat", "w", "b"], [given], transB=1, doc_string="/home/me/model.py")
    node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="/home/me/model.py")
    node.metadata_props.add(key="namespace", value="head")
    stored = zip(("w", "b"), module.state.values(), strict=True)
    graph = helper.make_graph(
        [helper.make_node("Flatten", [taken], ["flat"]), node],
        "toy",
        [helper.make_tensor_value_info(taken, TensorProto.FLOAT, [batch, *SIZE])],
        [helper.make_tensor_value_info(given, TensorProto.FLOAT, [batch, module.num_classes])],
        [numpy_helper.from_array(t.array, n) for n, t in stored],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", options["opset_version"])], ir_version=8)
    sys.stdout.write("the exporters talk on stdout")
    onnx.save_model(proto, path, save_as_external_data=True, location="beside", size_threshold=0)


def make_torch(export: Any = trace) -> Any:
    return SimpleNamespace(
        Tensor=Tensor,
        from_numpy=Tensor,
        zeros=lambda *shape: Tensor(np.zeros(shape, np.float32)),
        inference_mode=contextlib.nullcontext,
        manual_seed=lambda _seed: None,
        random=SimpleNamespace(fork_rng=lambda **_where: contextlib.nullcontext()),
        export=SimpleNamespace(Dim=str),
        onnx=SimpleNamespace(export=export),
    )


DATA = {"input_size": SIZE, "crop_pct": 0.95, "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.25,) * 3}


def make_timm(data: dict[str, Any] | None = None, state: Any = None, has_weights: bool = True, **config: Any) -> Any:
    """`state` is what a checkpoint holds: a dict, or an exception that reading it raises."""

    def create_model(_name: str, num_classes: int = 5, pretrained: bool = False, **options: Any) -> Module:
        overlay = options.get("pretrained_cfg_overlay")
        if overlay is None:
            return Module(num_classes, **config)
        assert pretrained
        assert overlay["source"] == ""  # else an address of the hub would win over the checkpoint
        model = Module(overlay["num_classes"])
        renamed = {k.replace("fc", "head"): v for k, v in overlay["state_dict"].items()}
        if renamed.keys() != model.state.keys():
            raise RuntimeError("Error(s) in loading state_dict")
        model.load_state_dict({k: Tensor(v.array[:, :48]) if v.array.ndim == 2 else v for k, v in renamed.items()})
        return model

    def load_state_dict(path: str, weights_only: bool) -> Any:
        assert weights_only, path
        if isinstance(state, Exception):
            raise state
        return state

    names = ["toy_tiny_patch16_224", "toy_base_patch16_224", "resnet18"]
    tagged = [f"{names[0]}.in1k", f"{names[0]}.in21k"]
    hub = SimpleNamespace(hf_hub_id="timm/toy", hf_hub_filename=None, has_weights=has_weights)
    return SimpleNamespace(
        __version__="1.0",
        is_model=lambda name: name in names,
        list_models=lambda *_args, pretrained=False: tagged if pretrained else names,
        create_model=create_model,
        models=SimpleNamespace(load_state_dict=load_state_dict, get_pretrained_cfg=lambda _name: hub),
        data=SimpleNamespace(
            resolve_data_config=lambda _args, **_model: DATA | (data or {}),
            infer_imagenet_subset=lambda cfg: "imagenet-1k" if cfg["num_classes"] == 5 else None,
            ImageNetInfo=lambda _subset: SimpleNamespace(label_descriptions=lambda: ["a", "b", "ç", "d", "e"]),
        ),
    )


@pytest.fixture
def installed(monkeypatch):
    """Stand-ins instead of PyTorch, timm and onnxscript."""

    def install(torch: Any = None, timm: Any = None) -> None:
        monkeypatch.setitem(sys.modules, "torch", torch or make_torch())
        monkeypatch.setitem(sys.modules, "timm", timm or make_timm())
        monkeypatch.setitem(sys.modules, "onnxscript", SimpleNamespace(__spec__=None))
        monkeypatch.setattr("corp_onnx.zoo.export._environment", lambda: MACHINE)

    return install


RANDOM = ExportSettings(pretrained=False)
NAME = "toy_tiny_patch16_224"


# without PyTorch


@pytest.mark.parametrize("package", ["torch", "timm"])
def test_a_missing_extra_is_a_sentence_and_exit_code_2(package, installed, monkeypatch, tmp_path, capsys):
    installed()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"needs PyTorch and timm, and '{package}' is not installed: pip inst"):
        export_model(NAME, tmp_path / "m.onnx")
    assert main(["export", NAME, "-o", str(tmp_path / "m.onnx")]) == 2
    out, err = capsys.readouterr()
    assert "pip install 'corp-onnx[export]'" in err
    assert not out
    assert not list(tmp_path.iterdir())


def test_torchscript_needs_no_onnxscript_and_dynamo_does(installed, monkeypatch, tmp_path):
    installed()
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match="'onnxscript' is not installed"):
        export_model(NAME, tmp_path / "m.onnx", settings=RANDOM)
    settings = ExportSettings("torchscript", 17, pretrained=False)
    assert export_model(NAME, tmp_path / "m.onnx", settings=settings).opset == 17


def test_help_has_one_imperative_line_an_example_and_the_defaults(capsys):
    assert main(["export", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Usage: corp-onnx export [OPTIONS] NAME"
    assert lines[2].strip().startswith("Export the timm model NAME to ONNX")
    text = "\n".join(lines)
    assert "Example:\n    corp-onnx export deit_base_patch16_224\n" in text
    for default in ("dynamo", "18", "dynamic", "NAME.onnx", "pretrained, from the hub"):
        assert f"[default: {default}]" in " ".join(text.split())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--opset", "17"], "--exporter dynamo writes opsets 18 to 23; found --opset 17."),
        (["--exporter", "torchscript", "--opset", "21"], "torchscript writes opsets 13 to 20; found --opset 21."),
        (["--batch", "0"], "expected dynamic or a number of images, found '0'"),
        (["--batch", "two"], "expected dynamic or a number of images, found 'two'"),
        (["--checkpoint", "none.pth"], "none.pth: no such file. Give a checkpoint in .safetensors"),
        (["--exporter", "jit"], "'jit' is not one of 'dynamo', 'torchscript'"),
    ],
)
def test_bad_options_are_refused_before_anything_is_imported(arguments, text, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["export", NAME, *arguments]) == 2
    assert text in " ".join(capsys.readouterr().err.split())


def test_settings_of_the_library_are_checked_too():
    with pytest.raises(OptionError, match="--batch must be dynamic or at least 1; found -1"):
        ExportSettings(batch=-1)
    with pytest.raises(OptionError, match="--exporter must be dynamo or torchscript; found jit"):
        ExportSettings(exporter="jit")  # type: ignore[arg-type]


def test_the_file_is_named_after_the_model():
    assert default_output("deit_tiny_patch16_224.fb_in1k") == Path("deit_tiny_patch16_224.fb_in1k.onnx")
    assert default_output("hf-hub:timm/deit_tiny") == Path("deit_tiny.onnx")
    assert default_output("local-dir:models") == Path("models.onnx")


# the stages, with stand-ins


@pytest.mark.parametrize("settings", [RANDOM, ExportSettings("torchscript", 17, pretrained=False)])
def test_a_file_carries_its_preprocessing_and_class_names(settings, installed, tmp_path):
    installed()
    result = export_model(NAME, tmp_path / "m.onnx", settings=settings)
    assert [f.name for f in tmp_path.iterdir()] == ["m.onnx"]  # in one piece, although the exporter wrote two
    model = load_model(tmp_path / "m.onnx")
    recipe = Recipe.from_json(model.metadata[METADATA_KEY])
    assert recipe == Recipe((4, 4), None, 0.95, "bilinear", (0.5,) * 3, (0.25,) * 3, "RGB")
    assert json.loads(model.metadata[LABELS_KEY]) == ["a", "b", "ç", "d", "e"]
    assert (result.opset, result.batch, result.n_labels, result.n_parameters) == (settings.opset, None, 5, 245)
    assert [c.name for c in result.checks] == ["structure", "parity"]
    assert [s.stage for s in result.stages] == ["build", "trace", "write", "check"]
    assert (result.weights, result.input_shape) == ("random (seed 0)", SIZE)
    assert json.loads(to_json(result))["recipe"]["interpolation"] == "bilinear"


def test_paths_of_the_exporting_machine_stay_there(installed, tmp_path):
    installed()
    export_model(NAME, tmp_path / "m.onnx", settings=RANDOM)
    assert b"/home/me" not in (tmp_path / "m.onnx").read_bytes()
    assert b"namespace" in (tmp_path / "m.onnx").read_bytes()


def test_a_fixed_batch_is_fixed(installed, tmp_path):
    installed()
    result = export_model(NAME, tmp_path / "m.onnx", settings=ExportSettings(batch=7, pretrained=False))
    assert result.batch == 7
    assert "batch 7" in result.checks[1].detail
    dims = load_model(tmp_path / "m.onnx").proto.graph.input[0].type.tensor_type.shape.dim
    assert dims[0].dim_value == 7


def test_a_model_that_answers_differently_is_not_written(installed, tmp_path):
    def drift(module: Module, *args: Any, **options: Any) -> None:
        other = Module()
        other.state["head.bias"] = Tensor(module.state["head.bias"].array + np.float32(0.01))
        trace(other, *args, **options)

    installed(make_torch(drift))
    with pytest.raises(
        CheckFailedError, match=r"failed its 'parity' check: .*difference 0.00\d+, allowed 0.0001.*thing was wri"
    ):
        export_model(NAME, tmp_path / "m.onnx", settings=RANDOM)
    assert not list(tmp_path.iterdir())


def test_a_frozen_batch_is_noticed(installed, tmp_path):
    def freeze(*args: Any, **options: Any) -> None:
        trace(*args, **{**options, "dynamic_shapes": None})

    installed(make_torch(freeze))
    sentence = (
        r"'parity' check: .*batch 1 and 3, .*: m\.onnx: ONNX Runtime failed while running it \(Got invalid dimensions"
    )
    with pytest.raises(CheckFailedError, match=sentence):
        export_model(NAME, tmp_path / "m.onnx", settings=RANDOM)


def test_another_opset_than_asked_for_is_an_error(installed, tmp_path):
    installed(make_torch(lambda *args, **options: trace(*args, **{**options, "opset_version": 20})))
    with pytest.raises(OptionError, match="PyTorch wrote opset 20 and not 18; give --opset 20"):
        export_model(NAME, tmp_path / "m.onnx", settings=RANDOM)


def test_an_exporter_that_fails_names_the_other(installed, tmp_path):
    def fail(*_args: Any, **_options: Any) -> None:
        raise RuntimeError("no symbol for aten::mystery\nand 80 lines more")

    installed(make_torch(fail))
    with pytest.raises(InputError, match=r"dynamo exporter failed \(no symbol for aten::mystery\). Try --exporter t"):
        export_model(NAME, tmp_path / "m.onnx", settings=RANDOM)
    assert not list(tmp_path.iterdir())


def test_a_model_with_several_outputs_is_refused(installed, tmp_path):
    timm = make_timm()
    timm.create_model = lambda _name: type("Pair", (Module,), {"__call__": lambda _self, x: (x, x)})()
    installed(timm=timm)
    with pytest.raises(InputError, match="the model gives a tuple; only models with one output are exported"):
        export_model(NAME, tmp_path / "m.onnx", settings=RANDOM)


def test_nothing_is_replaced_without_force(installed, tmp_path):
    installed()
    (tmp_path / "m.onnx").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        export_model(NAME, tmp_path / "m.onnx", settings=RANDOM)
    assert (tmp_path / "m.onnx").read_text() == "mine"
    export_model(NAME, tmp_path / "m.onnx", settings=RANDOM, force=True)
    assert load_model(tmp_path / "m.onnx").opset == 18


def test_the_command_prints_the_result_alone_on_stdout(installed, tmp_path, capsys):
    installed()
    arguments = ["export", NAME, "-o", str(tmp_path / "m.onnx"), "--no-pretrained"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "245 parameters" in out
    assert "opset 18, dynamic batch" in out
    assert "weights: random (seed 0); preprocessing: 4 x 4, crop 0.95, bilinear; 5 class names" in out
    assert "allowed 1e-04" in out
    assert err == ""  # it is over before the first line of progress
    assert main([*arguments, "--force", "--json"]) == 0
    require_valid(json.loads(capsys.readouterr().out), "export")


# the zoo


def test_an_unknown_name_gets_the_nearest_ones():
    timm = make_timm()
    check_name(timm, f"{NAME}.in21k")
    check_name(timm, "hf-hub:anything/at-all")
    with pytest.raises(OptionError, match=r"knows no model 'toy_tiny_patch_224'; the nearest names are toy_tiny_"):
        check_name(timm, "toy_tiny_patch_224")
    with pytest.raises(OptionError, match=r"knows no model 'zzz'; timm.list_models\(\) lists them"):
        check_name(timm, "zzz")
    with pytest.raises(OptionError, match=f"has no weights 'in12k' of {NAME}; it has in1k, in21k"):
        check_name(timm, f"{NAME}.in12k")
    with pytest.raises(OptionError, match="has no weights 'a1' of resnet18; it has none: give the name alone"):
        check_name(timm, "resnet18.a1")


def build(timm: Any, checkpoint: Path | None = None, *, pretrained: bool = False, name: str = NAME) -> Any:
    return build_model(make_torch(), timm, name, checkpoint=checkpoint, pretrained=pretrained)


def weights_of(n_classes: int, n_inputs: int = 48, prefix: str = "head") -> dict[str, Tensor]:
    weight = np.full((n_classes, n_inputs), 2.0, np.float32)
    return {f"{prefix}.weight": Tensor(weight), f"{prefix}.bias": Tensor(np.zeros(n_classes, np.float32))}


def test_a_checkpoint_brings_weights_and_its_number_of_classes():
    found = build(make_timm(state=weights_of(9)), Path("mine.safetensors"))
    assert found.module.num_classes == 9
    assert found.module.state["head.weight"].array[0, 0] == 2
    assert (found.weights, found.labels, found.warnings) == ("mine.safetensors", (), ())


def test_an_original_checkpoint_is_renamed_by_timm_and_a_resampled_weight_named():
    assert build(make_timm(state=weights_of(5, prefix="fc")), Path("o.pth")).module.state["head.bias"].array[0] == 0
    wide = build(make_timm(state=weights_of(5, n_inputs=50)), Path("o.pth"))
    assert wide.warnings == ("'head.weight' was resampled from [5, 50] to [5, 48].",)


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (
            {f"block.{i}": Tensor(np.zeros(2)) for i in range(4)},
            r"does not fit toy_tiny_patch16_224: 2 weights missing \(head.weight, head.bias\); 4 weights unexpected "
            r"\(block.0, block.1, block.2, ...\). Give the model name",
        ),
        (
            weights_of(5) | {"head.bias": Tensor(np.zeros(6)), "more": Tensor(np.zeros(1))},
            r"1 weight unexpected \(more\); 1 weight of another shape \(head.bias \[6\] instead of \[5\]\)",
        ),
        ({}, "holds no state dict, that is tensors by name"),
        ({"epoch": 3}, "holds no state dict, that is tensors by name"),
        (KeyError(101), r"can not be read as plain weights \(KeyError\). Save it again"),
        (RuntimeError("blocked: pickle globals.\nlong"), r"plain weights \(blocked: pickle globals\)"),
    ],
)
def test_a_checkpoint_that_can_not_be_used_says_why(state, text):
    with pytest.raises(InputError, match=text):
        build(make_timm(state=state), Path("mine.pth"))


def test_a_checkpoint_of_another_format_is_refused():
    with pytest.raises(InputError, match=r"expected a checkpoint in .safetensors, .pth, .pt or .bin, found '.npz'"):
        build(make_timm(), Path("mine.npz"))


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the hub's client with nothing in its cache, and what its address answers."""

    def set_answer(error: Exception, cached: str | None = None) -> None:
        client = SimpleNamespace(
            try_to_load_from_cache=lambda _hub_id, _file: cached,
            constants=SimpleNamespace(ENDPOINT="https://hub.example"),
        )
        monkeypatch.setitem(sys.modules, "huggingface_hub", client)

        def refuse(*_args: Any, **_options: Any) -> None:
            raise error

        monkeypatch.setattr(urllib.request, "urlopen", refuse)

    return set_answer


def test_a_hub_out_of_reach_says_what_to_do_instead(hub):
    hub(urllib.error.URLError("Name or service not known"))
    text = (
        r"https://hub.example can not be reached \(Name or service not known\), and timm/toy is not in its local "
        "cache. Give local weights with --checkpoint, or --no-pretrained for random ones"
    )
    with pytest.raises(InputError, match=text):
        build(make_timm(), pretrained=True)
    with pytest.raises(InputError, match="and timm/other is not in its local cache"):
        build(make_timm(), name="hf-hub:timm/other@v2")


def test_a_cache_or_an_answering_hub_is_enough(hub):
    hub(urllib.error.URLError("Name or service not known"), cached="/cache/model.safetensors")
    assert build(make_timm(), pretrained=True).weights == "timm/toy"
    hub(urllib.error.HTTPError("https://hub.example", 403, "Forbidden", None, None))  # type: ignore[arg-type]
    assert build(make_timm(), pretrained=True).weights == "timm/toy"


def test_weights_that_do_not_come_or_do_not_exist_are_told_apart(hub):
    hub(urllib.error.URLError("down"), cached="/cache/model.safetensors")
    timm = make_timm()

    def fail(_name: str, **_options: Any) -> None:
        raise OSError("the connection broke\n...")

    timm.create_model = fail
    with pytest.raises(InputError, match=r"pretrained weights could not be loaded \(the connection broke\). Give"):
        build(timm, pretrained=True)
    with pytest.raises(InputError, match=r"timm has no pretrained weights of it\. Give local weights"):
        build(make_timm(has_weights=False), pretrained=True)


def test_what_a_recipe_can_not_say_is_said():
    found = build(make_timm({"interpolation": "random", "crop_mode": "squash"}))
    assert (found.recipe.interpolation, found.recipe.fit) == ("bicubic", "squash")
    assert found.warnings == ("timm resizes with 'random'; the embedded recipe says bicubic.",)
    grey = build(make_timm({"input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,)}))
    assert (grey.recipe.channels, grey.warnings) == ("L", ())
    many = build(make_timm({"input_size": (13, 8, 8)}))
    assert many.recipe is None
    assert many.warnings == ("the model takes 13 channels, so no preprocessing for photographs was embedded.",)


def test_class_names_of_the_weights_come_before_those_of_imagenet():
    named = make_timm(label_names=("n1", "n2", "n3", "n4", "n5"), label_descriptions={"n1": "tench"})
    assert build(named).labels == ("tench", "n2", "n3", "n4", "n5")
    assert build(make_timm(label_names=("n1",))).labels[0] == "a"


# the real thing


@pytest.fixture
def timm():
    pytest.importorskip("torch")
    return pytest.importorskip("timm")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("exporter", "opset"), [("dynamo", 18), ("dynamo", 23), ("torchscript", 17)])
@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_a_real_model_keeps_its_answers_and_can_be_pruned(name, exporter, opset, timm, tmp_path):
    assert timm.is_model(name)
    result = export_model(name, tmp_path / "m.onnx", settings=ExportSettings(exporter, opset, pretrained=False))
    assert result.checks[1].difference < 1e-5
    assert result.n_labels == 1000
    assert result.recipe == {
        "size": (224, 224), "resize": None, "crop_pct": 0.9, "interpolation": "bicubic", "channels": "RGB",
        "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
    }  # fmt: skip
    units = inspect_model(tmp_path / "m.onnx").units
    assert [sum(u.kind == kind and u.prunable for u in units) for kind in ("mlp", "qk", "vo")] == [12, 12, 12]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_same_weights_by_both_formats_give_the_same_file(timm, tmp_path):
    import torch
    from safetensors.torch import save_file

    state = timm.create_model("deit_tiny_patch16_224", num_classes=10).state_dict()
    torch.save({"model": state, "epoch": 3}, tmp_path / "m.pth")
    save_file(state, tmp_path / "m.safetensors")
    hashes = [
        export_model(
            "deit_tiny_patch16_224", tmp_path / f"{suffix}.onnx",
            settings=ExportSettings("torchscript", 17, checkpoint=tmp_path / f"m.{suffix}"),
        ).sha256
        for suffix in ("pth", "safetensors")
    ]  # fmt: skip
    assert hashes[0] == hashes[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_an_original_deit3_checkpoint_and_code_in_a_checkpoint(timm, tmp_path):
    import torch

    state = timm.create_model("deit3_small_patch16_224").state_dict()
    original = {k.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v for k, v in state.items()}
    torch.save({"model": original}, tmp_path / "o.pth")
    settings = ExportSettings("torchscript", 17, checkpoint=tmp_path / "o.pth")
    assert export_model("deit3_small_patch16_224", tmp_path / "o.onnx", settings=settings).warnings == ()
    torch.save(torch.nn.Linear(2, 2), tmp_path / "code.pth")
    with pytest.raises(InputError, match="can not be read as plain weights"):
        export_model(
            "deit_tiny_patch16_224", tmp_path / "c.onnx", settings=ExportSettings(checkpoint=tmp_path / "code.pth")
        )
