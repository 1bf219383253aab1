"""One case for each thing a person can get wrong: a sentence on stderr, the right exit code, nothing half-written."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from samples import OPERATOR, TEXT, environment, fixture_path, listing, without_warnings, write_photos

from corp_onnx.cli import main

Run = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos", 8)


@pytest.fixture
def folder(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: vit.onnx, photos/, and out/ for what is written."""
    shutil.copy(fixture_path(OPERATOR), tmp_path / "vit.onnx")
    (tmp_path / "photos").symlink_to(photos)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prune(model: str = "vit.onnx", *options: str, calib: str = "photos") -> list[str]:
    output = [] if "-o" in options else ["-o", "out/small.onnx"]
    return ["prune", model, "--calib", calib, "--preset", "paper", *output, *options]


def refuse(arguments: list[str], code: int, sentence: str, capfd: Run, folder: Path) -> str:
    """Run, and check that it ends with this code and sentence and that no file came or went."""
    before = listing(folder)
    found = main(arguments)
    out, err = capfd.readouterr()
    assert found == code, err
    assert out == ""
    assert "Traceback" not in err
    assert re.search(sentence, err), err
    assert listing(folder) == before
    return err


def one_sentence(err: str) -> None:
    """Exactly one line of ours beside warnings."""
    err = without_warnings(err)
    assert err.startswith("corp-onnx: ")
    assert err.endswith(".\n")
    assert err.count("\n") == 1


class TestModel:
    def every_verb(self, model: str) -> list[list[str]]:
        return [["inspect", model], prune(model), ["evaluate", model, "--images", "photos", "--reference", model]]

    def test_missing(self, folder: Path, capfd: Run) -> None:
        for arguments in self.every_verb("nothing.onnx"):
            sentence = r"nothing\.onnx: no such file\. Give the path of an \.onnx file"
            one_sentence(refuse(arguments, 2, sentence, capfd, folder))

    @pytest.mark.parametrize("name", ["photos", ".", "..", "/", ""])
    def test_folder(self, name: str, folder: Path, capfd: Run) -> None:
        """Also those without a name that others could be made of."""
        shown = re.escape(name or ".")
        verbs = [["convert", name, "--fp16"], ["engine", name], ["bench", name], ["triton", name, "-o", "repo"]]
        alone = ["prune", name, "--calib", "photos", "--preset", "paper"]  # the output's name is the model's
        for arguments in [*self.every_verb(name), *verbs, alone]:
            one_sentence(refuse(arguments, 2, rf"corp-onnx: {shown}: is a folder\. Give the path", capfd, folder))

    @pytest.mark.parametrize("content", [b"\x00\x01\x02 not a model \xff\xfe" * 20, b"just a text file\n" * 9])
    def test_not_onnx(self, content: bytes, folder: Path, capfd: Run) -> None:
        (folder / "m.onnx").write_bytes(content)
        for arguments in self.every_verb("m.onnx"):
            sentence = r"m\.onnx: (not a readable ONNX file|ONNX Runtime can not load it|parsed, but)"
            one_sentence(refuse(arguments, 2, sentence, capfd, folder))

    def test_empty_file(self, folder: Path, capfd: Run) -> None:
        (folder / "m.onnx").touch()
        sentence = r"m\.onnx: parsed, but it has no graph with nodes; is it really an ONNX file\?|No graph was found"
        for arguments in self.every_verb("m.onnx"):
            refuse(arguments, 2, sentence, capfd, folder)

    def test_cut_short(self, folder: Path, capfd: Run) -> None:
        (folder / "m.onnx").write_bytes(fixture_path(OPERATOR).read_bytes()[:20000])
        for arguments in self.every_verb("m.onnx"):
            refuse(arguments, 2, r"m\.onnx: (not a readable ONNX file|ONNX Runtime can not load it)", capfd, folder)

    @pytest.mark.parametrize("suffix", ["json", "onnxtxt", "textproto"])
    def test_other_formats(self, suffix: str, folder: Path, capfd: Run) -> None:
        """onnx would choose a parser by these names, each with errors of its own."""
        (folder / f"m.{suffix}").write_text("{ ir_version")
        refuse(["inspect", f"m.{suffix}"], 2, rf"m\.{suffix}: not a readable ONNX file", capfd, folder)

    def test_quantised(self, folder: Path, capfd: Run) -> None:
        quantise(folder / "vit.onnx", folder / "int8.onnx")
        sentence = r"already quantised \(it has DequantizeLinear, QuantizeLinear\)\. Give the float model"
        one_sentence(refuse(prune("int8.onnx"), 2, sentence, capfd, folder))
        one_sentence(refuse(["inspect", "int8.onnx"], 2, sentence, capfd, folder))

    def test_no_transformer_block(self, folder: Path, capfd: Run) -> None:
        shutil.copy(fixture_path("torch_convnet_ts17"), "convnet.onnx")
        one_sentence(refuse(prune("convnet.onnx"), 2, r"convnet\.onnx: no transformer block found", capfd, folder))

    def test_nearest_miss_is_named(self, folder: Path, capfd: Run) -> None:
        proto = onnx.load("vit.onnx")
        for node in proto.graph.node:
            if node.op_type == "Attention":
                next(a for a in node.attribute if a.name == "softcap").f = 30.0
            if node.op_type == "Gelu":
                node.op_type = "Softmax"
                del node.attribute[:]
        onnx.save(proto, "capped.onnx")
        sentence = r"Nearest miss \(qk\) at Attention '[^']+': expected no soft cap.*`corp-onnx inspect` lists the rest"
        one_sentence(refuse(prune("capped.onnx"), 2, sentence, capfd, folder))

    def test_other_kinds_that_could_be_pruned_are_named(self, folder: Path, capfd: Run) -> None:
        shutil.copy(fixture_path("timm_eva02_base_ts17_unfused"), "rope.onnx")
        sentence = r"no MLP or query/key pair that can be pruned, but 1 value/output pair; name those with --units"
        one_sentence(refuse(prune("rope.onnx"), 2, sentence, capfd, folder))

    def test_external_weights_are_missing(self, folder: Path, capfd: Run) -> None:
        shutil.copy(fixture_path("timm_vit_ts17_external"), "m.onnx")
        sentence = (
            r"stored in 'timm_vit_ts17_external\.onnx\.data', which is not beside the model\. "
            rf"Copy that file to {re.escape(str(folder))}\.\n"
        )
        refuse(prune("m.onnx"), 2, sentence, capfd, folder)

    @pytest.mark.parametrize("shape", [(20, 24), (24, 20), (20, 60), (24,), (10, 20), (1, 17, 20)])
    def test_nan_weight_is_named(self, shape: tuple[int, ...], folder: Path, capfd: Run) -> None:
        """First and second product of an MLP, qkv, a bias, the head, positions: wherever it sits."""
        name = spoil(folder / "vit.onnx", shape, np.nan)
        sentence = rf"vit\.onnx: weight '{name}' holds 1 NaN or Inf among {np.prod(shape)} numbers; export the model"
        one_sentence(refuse(prune(), 1, sentence, capfd, folder))

    def test_infinite_weight_of_a_unit_is_named(self, folder: Path, capfd: Run) -> None:
        name = spoil(folder / "vit.onnx", (20, 24), np.inf)
        refuse(prune(), 1, rf"weight '{name}' holds 1 NaN or Inf among 480 numbers", capfd, folder)

    def test_nan_in_a_weight_shows_in_evaluate(self, folder: Path, capfd: Run) -> None:
        spoil(folder / "vit.onnx", (10, 20), np.nan)
        sentence = r"same\.onnx: output 'logits' holds NaN or Inf for 8 of 8 images"
        shutil.copy("vit.onnx", "same.onnx")
        refuse(["evaluate", "vit.onnx", "--images", "photos", "--reference", "same.onnx"], 1, sentence, capfd, folder)

    @pytest.mark.parametrize(("field", "sentence"), [
        ("opset", r"ONNX Runtime can not load it \(ONNX Runtime only \*guarantees\* support for models"),
        ("ir", r"ONNX Runtime can not load it \(Unsupported model IR version: 99, max supported IR version: \d+\)"),
    ])  # fmt: skip
    def test_newer_than_the_runtime(self, field: str, sentence: str, folder: Path, capfd: Run) -> None:
        """What ONNX Runtime says about it, without the C++ it says it from."""
        proto = onnx.load("vit.onnx")
        if field == "ir":
            proto.ir_version = 99
        else:
            proto.opset_import[0].version = 99
        onnx.save(proto, "vit.onnx")
        for arguments in self.every_verb("vit.onnx"):
            refuse(arguments, 2, sentence, capfd, folder)

    @pytest.mark.parametrize("make", ["no inputs", "string", "unknown operator"])
    def test_graphs_that_are_no_model_of_images(self, make: str, folder: Path, capfd: Run) -> None:
        value, node = helper.make_tensor_value_info, helper.make_node
        images = value("x", TensorProto.FLOAT, ["n", 3, 8, 8])
        constant = numpy_helper.from_array(np.zeros(3, np.float32))
        inputs, nodes = {
            "no inputs": ([], [node("Constant", [], ["y"], value=constant)]),
            "string": ([value("x", TensorProto.STRING, ["n"])], [node("Identity", ["x"], ["y"])]),
            "unknown operator": ([images], [node("Unheard", ["x"], ["y"], domain="org.example")]),
        }[make]
        kind = TensorProto.STRING if make == "string" else TensorProto.FLOAT
        graph = helper.make_graph(nodes, "odd", inputs, [value("y", kind, None)])
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("org.example", 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), "odd.onnx")
        refuse(prune("odd.onnx"), 2, r"corp-onnx: .*", capfd, folder)
        refuse(
            ["evaluate", "odd.onnx", "--images", "photos", "--reference", "odd.onnx"],
            2,
            r"corp-onnx: .*",
            capfd,
            folder,
        )

    def test_nodes_in_any_order(self, folder: Path, capfd: Run) -> None:
        """ONNX Runtime runs them so; then we do as well, and what is written is in order."""
        proto = onnx.load("vit.onnx")
        nodes = list(proto.graph.node)[::-1]
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
        (folder / "mixed.onnx").write_bytes(proto.SerializeToString())
        for arguments in (prune("mixed.onnx"), ["convert", "mixed.onnx", "--int8", "dynamic", "-o", "out/8.onnx"],
                          ["convert", "mixed.onnx", "--fp16", "-o", "out/16.onnx"]):  # fmt: skip
            assert main(arguments) == 0, capfd.readouterr().err
        for path in (folder / "out").glob("*.onnx"):
            onnx.checker.check_model(path)

    def test_nodes_in_a_circle(self, folder: Path, capfd: Run) -> None:
        proto = onnx.load("vit.onnx")
        proto.graph.node[0].input.append(proto.graph.node[-1].output[0])
        (folder / "circle.onnx").write_bytes(proto.SerializeToString())
        sentence = r"circle\.onnx: its nodes read each other in a circle; export the model again"
        for arguments in (prune("circle.onnx"), ["inspect", "circle.onnx"]):
            one_sentence(refuse(arguments, 2, sentence, capfd, folder))

    @pytest.mark.skipif(sys.platform != "linux", reason="names that are no text")
    def test_path_that_is_no_text(self, folder: Path, capfd: Run) -> None:
        name = os.fsdecode(b"n\xff.onnx")
        shutil.copy("vit.onnx", name)
        verbs = [arguments for arguments in self.every_verb(name) if arguments[0] != "inspect"]  # which opens no path
        for arguments in (*verbs, ["convert", name, "--fp16"], ["triton", name, "-o", "repo"]):
            sentence = r"n.*\.onnx: is not UTF-8, and onnx and ONNX Runtime open no such path; rename it"
            one_sentence(refuse(arguments, 2, sentence, capfd, folder))
        for arguments in (prune("vit.onnx", "-o", name, "--force"), prune("vit.onnx", "--report", name, "--force")):
            sentence = r"n.*\.onnx: its absolute path is not UTF-8, .*; give another (-o|--report)"
            one_sentence(refuse(arguments, 2, sentence, capfd, folder))


def quantise(source: Path, target: Path) -> None:
    """A QuantizeLinear and DequantizeLinear in front of the model."""
    proto = onnx.load(source)
    (image,) = proto.graph.input
    for node in proto.graph.node:
        node.input[:] = ["pixels" if name == image.name else name for name in node.input]
    proto.graph.initializer.extend(
        [numpy_helper.from_array(np.float32(0.05), "step"), numpy_helper.from_array(np.int8(0), "zero")]
    )
    proto.graph.node.insert(0, helper.make_node("QuantizeLinear", [image.name, "step", "zero"], ["small"]))
    proto.graph.node.insert(1, helper.make_node("DequantizeLinear", ["small", "step", "zero"], ["pixels"]))
    onnx.save(proto, target)


def spoil(path: Path, shape: tuple[int, ...], value: float) -> str:
    """One number of the first weight of a shape; gives its name."""
    proto = onnx.load(path)
    tensor = next(t for t in proto.graph.initializer if tuple(t.dims) == shape)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[1] = value
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(proto, path)
    return re.escape(tensor.name)


class TestData:
    def test_missing_folder(self, folder: Path, capfd: Run) -> None:
        sentence = "nowhere: no such folder or file; give a folder of images"
        one_sentence(refuse(prune(calib="nowhere"), 2, sentence, capfd, folder))
        refuse(["evaluate", "vit.onnx", "--images", "nowhere"], 2, sentence, capfd, folder)

    def test_empty_folder(self, folder: Path, capfd: Run) -> None:
        (folder / "empty").mkdir()
        one_sentence(refuse(prune(calib="empty"), 2, "empty: the folder is empty; give a folder", capfd, folder))

    def test_no_image_in_the_folder(self, folder: Path, capfd: Run) -> None:
        (folder / "texts").mkdir()
        for i in range(5):
            (folder / "texts" / f"{i}.jpg").write_text("no image")
        sentence = r"texts: 0 readable images among 5 files, .*skipped 0\.jpg \(not an image\).* and 2 more"
        one_sentence(refuse(prune(calib="texts"), 2, sentence, capfd, folder))

    def test_one_image(self, folder: Path, capfd: Run) -> None:
        write_photos(folder / "one", 1)
        sentence = "one: 1 readable image among 1 file, and at least 2 needed; give more images"
        one_sentence(refuse(prune(calib="one"), 2, sentence, capfd, folder))

    def test_model_is_no_image(self, folder: Path, capfd: Run) -> None:
        one_sentence(refuse(prune(calib="vit.onnx"), 2, r"vit\.onnx: not an image; expected", capfd, folder))

    def test_arrays_of_other_names(self, folder: Path, capfd: Run) -> None:
        shutil.copy(fixture_path(TEXT), "text.onnx")
        ids = np.ones((4, 7), np.int64)
        np.savez("text.npz", input_ids=ids, mask=ids)
        sentence = (
            r"inputs are input_ids, attention_mask, token_type_ids and the data holds input_ids, mask: nothing for"
        )
        one_sentence(refuse(prune("text.onnx", calib="text.npz"), 2, sentence, capfd, folder))

    def test_array_of_another_shape(self, folder: Path, capfd: Run) -> None:
        np.save("x.npy", np.zeros((4, 3, 9, 9), np.float32))
        sentence = r"input 'x' takes shape \[n, 3, 8, 8\], and its array has \[\d, 3, 9, 9\]"
        one_sentence(refuse(prune(calib="x.npy"), 2, sentence, capfd, folder))

    def test_array_of_pixels_instead_of_numbers(self, folder: Path, capfd: Run) -> None:
        np.save("x.npy", np.zeros((4, 3, 8, 8), np.uint8))
        sentence = "input 'x' takes float32 and its array is uint8: give arrays that are preprocessed"
        one_sentence(refuse(prune(calib="x.npy"), 2, sentence, capfd, folder))

    @pytest.mark.parametrize("row", [0, 5])
    def test_nan_in_an_array(self, row: int, folder: Path, capfd: Run) -> None:
        x = np.zeros((9, 3, 8, 8), np.float32)
        x[row, 0, 0, 0] = np.nan
        np.save("x.npy", x)
        one_sentence(refuse(prune(calib="x.npy"), 2, r"x\.npy: array 'pixels' holds NaN or Inf", capfd, folder))

    def test_damaged_array_file(self, folder: Path, capfd: Run) -> None:
        np.save("x.npy", np.zeros((9, 3, 8, 8), np.float32))
        (folder / "x.npy").write_bytes((folder / "x.npy").read_bytes()[:500])
        one_sentence(refuse(prune(calib="x.npy"), 2, r"x\.npy: NumPy can not read it", capfd, folder))

    def test_images_for_a_text_model(self, folder: Path, capfd: Run) -> None:
        shutil.copy(fixture_path(TEXT), "text.onnx")
        sentence = r"images go into \[n, 1 or 3, height, width\] only: give preprocessed arrays as \.npy or \.npz"
        one_sentence(refuse(prune("text.onnx"), 2, sentence, capfd, folder))


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ("--mlp 1.0", r"--mlp is the fraction removed and must lie in \[0, 1\); found 1\."),
            ("--attn -0.1", r"--attn is the fraction removed and must lie in \[0, 1\); found -0\.1"),
            ("--mlp nan", r"--mlp is the fraction removed .* found nan"),
            ("--mlp 0 --attn 0", "--mlp 0 and --attn 0 together remove nothing"),
            ("--ridge 0", r"--ridge must be a number above 0; found 0\."),
            ("--ridge inf", "--ridge must be a number above 0; found inf"),
            ("--provider gpu", r"provider 'gpu' is not available here; this onnxruntime has: .*cpu"),
            ("--images 1", "--images must be at least 2, one of them held back; found 1"),
            ("--resize 9 --crop-pct 0.5", "give one of the two"),
            ("--resize 0", "resize must be a positive number of pixels, found 0"),
            ("--crop-pct 2", r"the crop fraction must lie in \(0, 1\], found 2"),
            ("--mean 1,2", r"mean must be 3 finite numbers for RGB, found \(1\.0, 2\.0\)"),
            ("--std 0,1,1", "std must be positive"),
            ("-o vit.onnx --force", r"vit\.onnx: is the model itself; give another -o"),
            ("--report vit.onnx --force", r"vit\.onnx: is the model itself; give another --report"),
            ("--report out/small.onnx", "-o and --report name the same file"),
            ("-o out/small.json", r"needs a name that ends in \.onnx"),
            ("--merge-blocks one", "--merge-blocks takes whole numbers separated by commas; found 'one'"),
            ("--no-merge --merge constant", "--no-merge leaves nothing to merge"),
            ("--mlp 0.5 --merge-blocks 1", "tokens merge under a budget of MACs or a promise"),
        ],
    )
    def test_of_prune(self, options: str, sentence: str, folder: Path, capfd: Run) -> None:
        one_sentence(refuse(prune("vit.onnx", *options.split()), 2, sentence, capfd, folder))

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ("--macs 2", "--macs is a fraction and must lie between 0 and 1; found 2"),
            ("--params nan", "--params is a fraction and must lie between 0 and 1; found nan"),
            ("--min-agreement 1", "--min-agreement is a fraction and must lie between 0 and 1; found 1"),
            (
                "--macs 0.7 --params 0.5",
                "--params, --speedup and --latency exclude each other; give one",
            ),
            ("--macs 0.5 --mlp 0.5", "--mlp and --attn fix the widths and a budget searches them: give one"),
            ("--macs 0.5 --preset paper", "the paper's method takes fractions: give --mlp and --attn"),
            ("--rank obs --preset paper", "--rank obs is not in the paper"),
            ("--macs 0.5 --merge-blocks 0,17", r"block 17: there is no such block\. They can in 0, 1\."),
            ("--params 0.5 --merge search", "tokens merge under a budget of MACs or a promise"),
            ("--macs 0.01", r"--macs 0\.01 asks for less than pruning can reach .* 0\.\d+ of its MACs is the smallest"),
        ],
    )
    def test_of_a_budget(self, options: str, sentence: str, folder: Path, capfd: Run) -> None:
        arguments = ["prune", "vit.onnx", "--calib", "photos", "-o", "out/small.onnx", *options.split()]
        one_sentence(refuse(arguments, 2, sentence, capfd, folder))

    def test_without_images(self, folder: Path, capfd: Run) -> None:
        sentence = "no images: give --calib DIR, or --calibration FILE"
        one_sentence(refuse(["prune", "vit.onnx", "-o", "out/small.onnx"], 2, sentence, capfd, folder))

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            ("prune", "Missing argument 'MODEL'"),
            ("prune vit.onnx --calib photos --mlp half", "'half' is not a valid float"),
            ("prune vit.onnx --calib photos --seed -1", "-1 is not in the range x>=0"),
            ("prune vit.onnx --calib photos --batch 0", "0 is not in the range x>=1"),
            ("prune vit.onnx --calib photos --mean a,b,c", "expected numbers separated by commas, found 'a,b,c'"),
            ("prune vit.onnx --calib photos --rank best", "'best' is not one of"),
            ("prune vit.onnx --calib photos --faster", "No such option.*--faster"),
            ("evaluate --images photos", "Missing argument 'MODELS...'"),
            ("compress vit.onnx", "No such command 'compress'"),
        ],
    )
    def test_of_the_wrong_form(self, arguments: str, sentence: str, folder: Path, capfd: Run) -> None:
        err = refuse(arguments.split(), 2, sentence, capfd, folder)
        assert err.startswith("Usage: corp-onnx")

    def test_runtime_is_not_installed(self, folder: Path, capfd: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        sentence = r"ONNX Runtime is not installed: pip install 'corp-onnx\[cpu\]', or 'corp-onnx\[gpu\]'"
        evaluate = ["evaluate", "vit.onnx", "--images", "photos", "--reference", "vit.onnx"]
        for arguments in (prune(), ["inspect", "vit.onnx"], evaluate):
            one_sentence(refuse(arguments, 2, sentence, capfd, folder))
        assert main(["--help"]) == 0


class TestOutput:
    def test_exists(self, folder: Path, capfd: Run) -> None:
        for name, option in (("small.onnx", "-o"), ("small.report.json", "--report")):
            path = folder / "out" / name
            path.write_text("old")
            sentence = rf"out/{re.escape(name)}: exists already; give another {option}, or --force to replace it"
            one_sentence(refuse(prune(), 2, sentence, capfd, folder))
            assert path.read_text() == "old"
            path.unlink()

    def test_folder(self, folder: Path, capfd: Run) -> None:
        (folder / "out.onnx").mkdir()
        sentence = r"out\.onnx: is a folder; give the name of a file"
        for force in ([], ["--force"]):
            one_sentence(refuse(prune("vit.onnx", "-o", "out.onnx", *force), 2, sentence, capfd, folder))
        for name in (".", "..", "/"):
            sentence = rf"corp-onnx: {re.escape(name)}: is a folder; give the name of a file"
            for arguments in (prune("vit.onnx", "-o", name), ["convert", "vit.onnx", "--fp16", "-o", name],
                              ["engine", "vit.onnx", "-o", name], prune("vit.onnx", "--report", name)):  # fmt: skip
                one_sentence(refuse([*arguments, "--force"], 2, sentence, capfd, folder))

    def test_file_where_a_folder_must_be(self, folder: Path, capfd: Run) -> None:
        sentence = r"photos/000\.png is not a folder; give another -o"
        one_sentence(refuse(prune("vit.onnx", "-o", "photos/000.png/small.onnx"), 2, sentence, capfd, folder))

    @pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder that not even root may write to")
    def test_folder_that_can_not_be_written(self, folder: Path, capfd: Run) -> None:
        sentence = r"/proc/self/new: can not be written \(.*\); give another (-o|--report)"
        one_sentence(refuse(prune("vit.onnx", "-o", "/proc/self/new/m.onnx"), 2, sentence, capfd, folder))
        one_sentence(refuse(prune("vit.onnx", "--report", "/proc/self/new/r.json"), 2, sentence, capfd, folder))

    def test_device(self, folder: Path, capfd: Run) -> None:
        sentence = "/dev/null: is not a regular file; give another --report"
        refuse(prune("vit.onnx", "--report", "/dev/null", "--force"), 2, sentence, capfd, folder)
        assert Path("/dev/null").is_char_device()

    @pytest.mark.parametrize("option", ["-o", "--report"])
    def test_new_folder_goes_again_when_the_run_fails(self, option: str, folder: Path, capfd: Run) -> None:
        np.save("x.npy", np.zeros((4, 3, 9, 9), np.float32))  # found out in calibration only
        name = "new/deep/r.json" if option == "--report" else "new/deep/m.onnx"
        refuse(prune("vit.onnx", option, name, calib="x.npy"), 2, "takes shape", capfd, folder)

    def test_name_that_is_too_long(self, folder: Path, capfd: Run) -> None:
        refuse(prune("vit.onnx", "-o", f"out/{'x' * 300}.onnx"), 2, "File name too long", capfd, folder)

    @pytest.mark.long
    def test_disk_full(self, folder: Path) -> None:
        """No file may grow beyond the limit: the model does not fit."""
        before = listing(folder)
        done = run_limited(prune(), folder, 20_000)
        assert done.returncode == 2, done.stderr
        assert done.stdout == ""
        assert re.search(r"corp-onnx: small\.onnx: could not be written .*File too large", done.stderr), done.stderr
        assert "Traceback" not in done.stderr
        assert listing(folder) == before

    @pytest.mark.long
    @pytest.mark.parametrize(("n_bytes", "way"), [(20_000, ["dynamic"]), (10_000, ["static", "--calib", "photos"])])
    def test_disk_full_while_quantising(self, n_bytes: int, way: list[str], folder: Path) -> None:
        """ONNX Runtime's quantiser says of a copy in float32 what it says of a model that it can not read."""
        before = listing(folder)
        arguments = ["convert", "vit.onnx", "--int8", *way, "-o", "out/small.onnx"]
        done = run_limited(arguments, folder, n_bytes)
        assert done.returncode == 2, (way, done.stderr)
        assert re.search(r"corp-onnx: .*could (not be written to|not write its files) .*File too large", done.stderr)
        assert f"{folder}/out" in done.stderr
        assert ".corp-onnx-partial" not in done.stderr, "a folder that a person does not know"
        one_sentence(done.stderr)
        assert listing(folder) == before

    def test_disk_full_at_the_report(self, folder: Path, capfd: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """The model is staged already; it is not published without its report."""
        write = Path.write_text

        def write_text(self: Path, *args: str, **options: str) -> int:
            if self.name.endswith(".json"):
                raise OSError(28, "No space left on device")
            return write(self, *args, **options)

        monkeypatch.setattr(Path, "write_text", write_text)
        sentence = r"out/small\.report\.json: could not be written \(No space left on device\)"
        one_sentence(refuse(prune(), 2, sentence, capfd, folder))


def run_limited(arguments: list[str], folder: Path, n_bytes: int) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # else the process dies of it
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))

    preexec: Callable[[], None] = limit
    command = [sys.executable, "-m", "corp_onnx", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=120, preexec_fn=preexec
    )
