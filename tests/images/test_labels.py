"""Names and the classes they mean; lists of the same names in other orders."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from photos import class_folders, photo, read_set

from corp_onnx.errors import ImageError
from corp_onnx.images import split_holdout
from corp_onnx.images.labelling import label_files
from corp_onnx.images.labels import ClassNames, count_base, find_contradiction, is_wordnet_id, match_names, split_name


def classes(*names: str, source: str = "names.txt") -> ClassNames:
    return ClassNames(tuple(map(split_name, names)), Path(source), f"{len(names)} names")


class TestMatch:
    @pytest.mark.parametrize(
        ("folder", "index"),
        [
            ("tench", 0), ("Tench", 0), ("great dane", 1), ("Great_Dane", 1), ("great-dane", 1), ("maillot", 2),
            ("maillot, tank suit", 3), ("n01440764", 4), ("n01440764_goldfish", 4), ("goldfish", 4), ("Goldfish ", 4),
        ],
    )  # fmt: skip
    def test_exactly_then_forgivingly_then_by_the_first_synonym(self, folder: str, index: int) -> None:
        known = classes("tench, Tinca tinca", "great dane", "maillot", "maillot, tank suit", "n01440764 goldfish")
        found = match_names([folder], known)
        assert (found.index, found.unknown, found.ambiguous) == ({folder: index}, (), {})

    def test_what_could_be_two_classes_is_none(self) -> None:
        found = match_names(["crane", "Cat", "dog"], classes("crane", "crane", "cat", "CAT", "fox"))
        assert found.ambiguous == {"crane": (0, 1), "Cat": (2, 3)}
        assert found.unknown == ("dog",)
        assert match_names(["cat", "CAT"], classes("cat", "CAT")).index == {"cat": 0, "CAT": 1}

    def test_numbers_are_names_before_they_are_indices(self) -> None:
        assert match_names(["1", "02"], classes("2", "1", "0")).index == {"1": 1, "02": 0}
        by_number = match_names(["00", "1"], classes("a", "b", "c"))
        assert (by_number.index, by_number.how) == ({"00": 0, "1": 1}, " by their number, counted from 0")
        assert match_names(["1", "3"], classes("a", "b", "c")).index == {"1": 0, "3": 2}
        assert match_names(["1", "2"], classes("a", "b", "c")).unknown == ("1", "2"), "from 0 or from 1?"
        assert match_names(["0", "3"], classes("a", "b", "c")).unknown == ("0", "3")

    @given(st.lists(st.text("abcXYZ _-,09", min_size=1, max_size=6), min_size=1, max_size=8, unique=True))
    def test_a_list_finds_every_name_of_its_own(self, names: list[str]) -> None:
        known = ClassNames(tuple((name,) for name in names), Path("n"), "")
        assert match_names(names, known).index == {name: i for i, name in enumerate(names)}


@pytest.mark.parametrize(
    ("values", "n_classes", "base"),
    [
        (["0", "3"], 4, 0), (["0", "4"], 4, None), (["1", "4"], 4, 1), (["1", "3"], 4, None), (["0", "9"], None, 0),
        (["1", "9"], None, None), ([], 4, None), (["1", "x"], 4, None), (["-1"], 4, None),
    ],
)  # fmt: skip
def test_numbers_show_what_they_count_from(values: list[str], n_classes: int | None, base: int | None) -> None:
    assert count_base(values, n_classes) == base


class TestContradiction:
    def test_other_orders_of_the_same_names(self) -> None:
        own = classes("cat", "dog", "emu", source="m.onnx")
        assert find_contradiction(classes("Cat", "dog", "emu"), own) == ""
        text = find_contradiction(classes("dog", "cat", "emu"), own)
        assert text.startswith(
            "names.txt and m.onnx have the same class names in different orders: 'cat' is class 1 of"
        )

    def test_other_names_and_few_differences_are_none(self) -> None:
        own = classes("cat", "dog", source="m.onnx")
        assert find_contradiction(classes("n01440764", "n01440765"), own) == ""
        assert find_contradiction(classes("cat"), own) == ""
        assert find_contradiction(classes("zero", "one"), classes("0", "1")) == ""
        many = [f"name {i}" for i in range(100)]
        swapped = [*many[1::-1], *many[2:]]
        assert find_contradiction(classes(*swapped), classes(*many)) == "", "spelling of two in a hundred"
        assert find_contradiction(classes(*many[::-1]), classes(*many)) != ""


def test_wordnet_ids() -> None:
    assert is_wordnet_id("n01440764")
    assert not any(map(is_wordnet_id, ("n0144076", "n014407641", "v01440764", "n0144076x", "n0144076٤", "")))
    assert split_name("n01440764 tench, Tinca tinca") == ("n01440764", "tench, Tinca tinca")
    assert split_name("n01440764: tench") == ("n01440764", "tench")
    assert split_name(" n01440764 ") == ("n01440764",)
    assert split_name("n014407641") == ("n014407641",)


def test_folders_give_labels_by_sorted_name(tmp_path):
    class_folders(tmp_path, "dog", "cat", "emu/deep")
    images = read_set(tmp_path, labels="folders")
    (batch,) = images.batches(10)
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (images.labels.n_classes, images.labels.source) == (3, None)
    assert images.labels.meaning == "3 class folders in sorted order"
    assert read_set(tmp_path, labels="folders", limit=1).labels.n_classes == 3
    assert next(iter(read_set(tmp_path).batches(10))).labels is None
    half, _ = split_holdout(images, 0.5)
    for batch in half.batches(1):
        assert batch.labels == [["cat", "dog", "emu"].index(batch.names[0].split("/")[0])]


def test_labels_file_maps_missing_folders_right(tmp_path):
    root = tmp_path / "val"
    class_folders(root, "n30", "n10")
    labels = tmp_path / "ids.txt"
    labels.write_text("n20\nn10\r\nn40\nn30\n")
    images = read_set(root, labels=labels)
    (batch,) = images.batches(10)
    assert batch.labels is not None
    assert batch.labels.tolist() == [1, 1, 3, 3]
    assert images.labels.n_classes == 4
    (only,) = read_set(root, labels=labels, limit=1).batches(1)
    assert only.labels == [1 if only.names[0].startswith("n10") else 3]


def test_images_outside_class_folders(tmp_path):
    root = tmp_path / "val"
    class_folders(root, "n10")
    (root / "README").write_text("not an image, so no label is missing")
    labels = tmp_path / "ids.txt"
    labels.write_text("n10\n")
    assert read_set(root, labels=labels).labels.indices == (0, 0)
    photo(20, 20).save(root / "loose.png")
    with pytest.raises(ImageError, match=r"loose.png lies in no class folder, so ids.txt gives it no label"):
        read_set(root, labels=labels)
    tolerant = read_set(root, labels="folders")
    assert tolerant.labels.indices is None
    assert tolerant.labels.note.startswith("loose.png lies in no class folder of")


def test_no_labels_unless_they_are_asked_for():
    labels = label_files(["a/1.png"], None)
    assert (labels.indices, labels.n_classes, labels.note) == (None, None, "")


def test_a_text_names_three_unknown_folders_and_counts_the_rest(tmp_path):
    (tmp_path / "ids.txt").write_text("n0\n")
    class_folders(tmp_path / "val", *(f"n{i}" for i in range(1, 6)))
    with pytest.raises(ImageError, match=r"folder n1, n2, n3 and 2 more is not among the 1 classes of .*ids\.txt"):
        read_set(tmp_path / "val", labels=tmp_path / "ids.txt")
