"""Models behind links: the layout of the Hugging Face cache, a path that is a link, hard links, and where links end."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from samples import EXTERNAL, OPERATOR, fixture_path, listing, weights_of, write_photos

from corp_onnx.cli import main
from corp_onnx.errors import ModelError
from corp_onnx.graph import load_model
from corp_onnx.graph.external import load_tensors, read_tensor
from corp_onnx.graph.links import LinkedModel
from corp_onnx.graph.model import file_size, list_files
from corp_onnx.graph.write import write_model

NAME = f"{EXTERNAL}.onnx"


def store(folder: Path, model: str = NAME, data: str = f"{NAME}.data") -> Path:
    """The model and its weights under these names."""
    folder.mkdir(parents=True)
    shutil.copyfile(fixture_path(EXTERNAL), folder / model)
    shutil.copyfile(fixture_path(EXTERNAL).with_name(f"{NAME}.data"), folder / data)
    return folder / model


def make_cache(root: Path) -> Path:
    """As `huggingface_hub` keeps a download."""
    store(root / "blobs", "7f3c", "9d0e")
    (root / "snapshots" / "1a2b").mkdir(parents=True)
    for name, blob in ((NAME, "7f3c"), (f"{NAME}.data", "9d0e")):
        (root / "snapshots" / "1a2b" / name).symlink_to(f"../../blobs/{blob}")
    return root / "snapshots" / "1a2b" / NAME


def make_link(root: Path) -> Path:
    """A link to a model whose weights lie beside that and not beside the link."""
    store(root / "models")
    (root / "m.onnx").symlink_to("models/" + NAME)
    return root / "m.onnx"


def make_hard_links(root: Path) -> Path:
    store(root / "models")
    (root / "again").mkdir()
    for file in (root / "models").iterdir():
        (root / "again" / file.name).hardlink_to(file)
    return root / "again" / NAME


LAYOUTS = [make_cache, make_link, make_hard_links]


@pytest.mark.parametrize("layout", LAYOUTS)
class TestLayouts:
    def test_weights_are_those_of_the_plain_model(self, layout: Callable[[Path], Path], tmp_path: Path) -> None:
        path = layout(tmp_path)
        model = load_model(path)
        assert model.path == path
        expected = weights_of(fixture_path(EXTERNAL))
        for tensor in model.proto.graph.initializer:
            np.testing.assert_array_equal(read_tensor(tensor, model.folder), expected[tensor.name])
        assert file_size(model) == file_size(load_model(fixture_path(EXTERNAL)))

    def test_written_again(self, layout: Callable[[Path], Path], tmp_path: Path) -> None:
        model = load_model(layout(tmp_path))
        (tmp_path / "new").mkdir()
        write_model(model.proto, tmp_path / "new" / "n.onnx", model.folder)
        assert listing(tmp_path / "new") == ["n.onnx", "n.onnx.data"]
        assert weights_of(tmp_path / "new" / "n.onnx").keys() == weights_of(fixture_path(EXTERNAL)).keys()

    @pytest.mark.parametrize("verb", ["inspect", "evaluate", "convert", "triton"])
    def test_verbs(
        self, layout: Callable[[Path], Path], verb: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        path = layout(tmp_path)
        photos = write_photos(tmp_path / "photos", 4)
        options = {
            "inspect": [],
            "evaluate": ["--images", photos, "--reference", fixture_path("timm_vit_ts17_unfused")],
            "convert": ["--fp16", "-o", tmp_path / "half.onnx"],
            "triton": ["-o", tmp_path / "repository"],
        }[verb]
        assert main([verb, *map(str, [path, *options])]) == 0, capfd.readouterr().err
        if verb == "triton":
            assert listing(tmp_path / "repository" / path.stem / "1") == ["model.onnx", f"{NAME}.data"]

    def test_weights_are_never_replaced(
        self, layout: Callable[[Path], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        path = layout(tmp_path)
        own = list_files(load_model(path))[1]
        output = own.with_name(own.name.removesuffix(".data"))
        for target in {str(own), str(output)} if own.suffix == ".data" else {str(own)}:
            assert main(["convert", str(path), "--fp16", "--force", "-o", target]) == 2
        capfd.readouterr()
        assert own.read_bytes() == fixture_path(EXTERNAL).with_name(f"{NAME}.data").read_bytes()


@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pruned_as_the_plain_model_is(
    layout: Callable[[Path], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    photos = write_photos(tmp_path / "photos", 8)
    found = []
    for path in (layout(tmp_path / "linked"), fixture_path(EXTERNAL)):
        folder = tmp_path / f"out{len(found)}"
        arguments = [path, "--calib", photos, "--preset", "paper", "-o", folder / "m.onnx"]
        assert main(["prune", *map(str, arguments)]) == 0, capfd.readouterr().err
        found.append([(folder / name).read_bytes() for name in ("m.onnx", "m.onnx.data")])
    assert found[0] == found[1]


class TestWhereLinksEnd:
    @pytest.mark.parametrize("verb", ["inspect", "convert --fp16"])
    def test_weights_out_of_the_folder(self, verb: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        """A model that a stranger packed reads no file of ours."""
        path = store(tmp_path / "in")
        (tmp_path / "secret").write_bytes((tmp_path / "in" / f"{NAME}.data").read_bytes())
        (tmp_path / "in" / f"{NAME}.data").unlink()
        (tmp_path / "in" / f"{NAME}.data").symlink_to(tmp_path / "secret")
        first, *options = verb.split()
        assert main([first, str(path), *options]) == 2
        err = capfd.readouterr().err
        assert re.fullmatch(
            rf"corp-onnx: .*: its weights lie in '{NAME}\.data', which leads out of its folder to .*secret; copy that "
            r"file beside the model\.\n",
            err,
        ), err

    def test_link_to_nowhere(self, tmp_path: Path) -> None:
        (tmp_path / "m.onnx").symlink_to("nowhere")
        with pytest.raises(ModelError, match=r"m\.onnx: no such file"):
            load_model(tmp_path / "m.onnx")

    def test_link_to_a_model_without_its_weights(self, tmp_path: Path) -> None:
        path = make_cache(tmp_path)
        (tmp_path / "blobs" / "9d0e").unlink()
        with pytest.raises(ModelError, match=rf"1a2b/{NAME}: weight '.*' is stored in '{NAME}\.data', which is not"):
            load_model(path)

    def test_plain_models_are_no_linked_ones(self, tmp_path: Path) -> None:
        (tmp_path / "folder").symlink_to(fixture_path(EXTERNAL).parent)
        for path in (fixture_path(EXTERNAL), fixture_path(OPERATOR), tmp_path / "folder" / NAME):
            assert not isinstance(load_model(path), LinkedModel)


class TestReading:
    def make(self, folder: Path, **entries: object) -> onnx.TensorProto:
        tensor = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "w")
        (folder / "w").write_bytes(bytes(8) + tensor.raw_data)
        onnx.external_data_helper.set_external_data(tensor, "w", offset=8, length=24)
        for entry in tensor.external_data:
            entry.value = str(entries.get(entry.key, entry.value))
        return tensor

    def test_offset_and_length(self, tmp_path: Path) -> None:
        np.testing.assert_array_equal(read_tensor(self.make(tmp_path), tmp_path), [[0, 1, 2], [3, 4, 5]])

    def test_without_a_place_it_is_the_whole_file(self, tmp_path: Path) -> None:
        tensor = self.make(tmp_path)
        del tensor.external_data[1:]
        (tmp_path / "w").write_bytes(bytes(24))
        np.testing.assert_array_equal(read_tensor(tensor, tmp_path), np.zeros((2, 3)))

    @pytest.mark.parametrize(
        ("entries", "sentence"),
        [
            ({"offset": 9}, r"w: has 32 bytes, and weight 'w' is said to be 24 from 9 on; copy the file again"),
            ({"offset": -1}, r"w: has 32 bytes, and weight 'w' is said to be 24 from -1 on"),
            ({"length": 10**15}, r"w: has 32 bytes, and weight 'w' is said to be 10{15} from 8 on"),
            ({"length": 20}, r"w: weight 'w' has 20 bytes for \[2, 3\] numbers"),
            ({"offset": "there"}, r"w: weight 'w' can not be read \(its place is no number\)"),
            ({"location": "v"}, r"v: no regular file is there, and weight 'w' is stored in it"),
        ],
    )
    def test_refused(self, entries: dict[str, object], sentence: str, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=sentence):
            read_tensor(self.make(tmp_path, **entries), tmp_path)

    def test_a_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        tensor = self.make(tmp_path)
        (tmp_path / "w").unlink()
        os.mkfifo(tmp_path / "w")
        proto = onnx.ModelProto()
        proto.graph.initializer.append(tensor)
        with pytest.raises(ModelError, match="no regular file is there"):
            load_tensors(proto, tmp_path)
