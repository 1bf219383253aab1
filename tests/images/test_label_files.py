"""What a labels file is taken for, and what is none; names that models carry."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from corp_onnx.errors import ImageError, ModelError
from corp_onnx.images.label_files import read_class_names, read_labels, read_model_names
from corp_onnx.images.labels import LABELS_KEY, ClassNames, Truth

FILES = ("a.png", "b c.png", "d.jpg")


def read(tmp_path: Path, text: str | bytes, files: tuple[str, ...] = ()) -> ClassNames | Truth:
    path = tmp_path / "labels.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_labels(path, files)


def test_a_byte_order_mark_and_white_space_are_no_name(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_bytes("\ufeffzebra\r\n  ant \n\n".encode())
    assert read_class_names(tmp_path / "ids.txt").titles == ("zebra", "ant")


@pytest.mark.parametrize(
    ("text", "titles"),
    [
        ("class 0\nclass 1\nclass 2\n", ("class 0", "class 1", "class 2")),
        ("0 cat\n1 dog\n", ("cat", "dog")),
        ("1,dog\n0,\"cat\"\n", ("cat", "dog")),
        ("id,name\n0,cat\n1,dog, hot\n", ("cat", "dog, hot")),
        ("cat\t0\ndog\t1\n", ("cat", "dog")),
        ("3 cats\n0 dogs\n", ("3 cats", "0 dogs")),
        ("cat, tabby\ndog, hot\n", ("cat, tabby", "dog, hot")),
        ("0\n1\n2\n", ("0", "1", "2")),
        ("[red]\n[blue]\n", ("[red]", "[blue]")),
        ("['a', 'b']", ("a", "b")),
        ('["a\\nb", "c"]', ("a b", "c")),
        ("n00000002 b\nn00000001 a\n", ("b", "a")),
        ("n00000002\nn00000001\n\n", ("n00000001", "n00000002")),
    ],
)  # fmt: skip
def test_names(text: str, titles: tuple[str, ...], tmp_path: Path) -> None:
    found = read(tmp_path, text)
    assert isinstance(found, ClassNames)
    assert found.titles == titles
    assert len(found) == len(titles)


@pytest.mark.parametrize(
    ("text", "files", "values"),
    [
        ("a.png,3\nb c.png,4\n", FILES[:2], ("3", "4")),
        ("a.png 3\nb c.png 4\n", FILES[:2], ("3", "4")),
        ("image\tlabel\na\tx y\n", ("a.png",), ("x y",)),
        ('file;class\n"a.png";"x;y"\n', FILES[:1], ("x;y",)),
        ("3,a.png\n", FILES[:1], ("3",)),
        ("1\n0\n1\n", None, ("1", "0", "1")),
        ("2\n0\n1\n", None, ("2", "0", "1")),
    ],
)  # fmt: skip
def test_labels_of_images(text: str, files: tuple[str, ...] | None, values: tuple[str, ...], tmp_path: Path) -> None:
    found = read(tmp_path, text, FILES if files is None else files)
    assert isinstance(found, Truth)
    assert found.values == values
    assert (found.files is None) == (files is None)
    if files is not None:
        assert [f.split(".")[0] for f in found.files or ()] == [f.split(".")[0] for f in files]


def test_numbers_of_images_in_folders_are_names_where_each_is_there_once(tmp_path: Path) -> None:
    assert isinstance(read(tmp_path, "2\n0\n1\n", ("x/a.png",)), ClassNames)
    assert isinstance(read(tmp_path, "1\n0\n1\n", ("x/a.png",)), Truth)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"\n", "labels file is empty; expected one class name a line"),
        (b"a\n\nc\n", "expected a class name in every line of the labels file, and found an empty one, line 2"),
        (b"n00000001\nn00000002\nn00000001\n", "names a class twice: n00000001"),
        (b"\xff\xfe\x00\x01", "not a text file"),
        (b'{"0": "a", "2": "b"}', r"expected a name for each number 0\.\.1, found 0, 2"),
        (b'{"0": {"a": 1}}', r"expected names, found {'a': 1}"),
        (b"[]", "expected a list of names, or an object of numbers and names"),
        (b'["a", null]', "expected names, found None"),
        (b'["a", " "]', "class 1 has no name; expected one for every class"),
    ],
)
def test_files_that_say_nothing(content: bytes, match: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=match):
        read(tmp_path, content)


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"no\.txt: the labels file can not be read \(No such file"):
        read_labels(tmp_path / "no.txt")
    (tmp_path / "a.json").write_text('["a", ')
    with pytest.raises(ImageError, match="it is not a JSON text"):
        read_labels(tmp_path / "a.json")
    (tmp_path / "deep.txt").write_text("[" * 100_000)
    assert len(read_class_names(tmp_path / "deep.txt")) == 1, "a strange name, and no crash"
    (tmp_path / "truth.csv").write_text("a.png,1\n")
    with pytest.raises(ImageError, match="says the label of single images; expected the names of the classes"):
        read_class_names(tmp_path / "truth.csv")


class TestModel:
    def test_names_in_its_metadata(self, tmp_path: Path) -> None:
        names = read_model_names(tmp_path / "m.onnx", {LABELS_KEY: json.dumps(["n01440764 tench", "\x1b[31mred\n"])})
        assert names is not None
        assert names.titles == ("tench", "[31mred")
        assert names.names[0] == ("n01440764", "tench")
        assert read_model_names(tmp_path / "m.onnx", {}) is None
        assert read_model_names(tmp_path / "m.onnx", {LABELS_KEY: "[]"}) is None

    @pytest.mark.parametrize("stored", ["{", '{"0": "a"}', "[1]", '"a"'])
    def test_broken_metadata_of_ours(self, stored: str, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"m\.onnx: corp_onnx\.labels in its metadata is no JSON list of names; r"):
            read_model_names(tmp_path / "m.onnx", {LABELS_KEY: stored})

    @pytest.mark.parametrize("stored", ["x", "{1: 'a'}", "{0: None}", "(((", "'\\d'", "__import__('os')"])
    def test_metadata_of_others_that_is_no_list_is_passed_over(self, stored: str, tmp_path: Path) -> None:
        assert read_model_names(tmp_path / "m.onnx", {"names": stored}) is None

    def test_names_beside_it(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"label_names": ["n01440764"], "num_classes": 1}))
        names = read_model_names(tmp_path / "m.onnx", {})
        assert names is not None
        assert names.titles == ("n01440764",)
        (tmp_path / "config.json").write_text("[]")
        assert read_model_names(tmp_path / "m.onnx", {}) is None
