"""Class indices from folders and from a labels file; what has none, and why."""

from __future__ import annotations

import pytest
from photos import SMALL, class_folders, photo, read_set

from corp_onnx.errors import ImageError
from corp_onnx.images import open_images, split_holdout
from corp_onnx.images.labels import label_files, read_class_names


def test_folders_give_labels_by_sorted_name(tmp_path):
    class_folders(tmp_path, "dog", "cat", "emu/deep")
    images = read_set(tmp_path, labels="folders")
    (batch,) = images.batches(10)
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (images.labels.n_classes, images.labels.source) == (3, None)
    assert read_set(tmp_path, labels="folders", limit=1).labels.n_classes == 3
    assert next(iter(read_set(tmp_path).batches(10))).labels is None
    half, _ = split_holdout(images, 0.5)
    for batch in half.batches(1):
        assert batch.labels == [["cat", "dog", "emu"].index(batch.names[0].split("/")[0])]


def test_labels_file_is_sorted_and_maps_missing_folders_right(tmp_path):
    root = tmp_path / "val"
    class_folders(root, "n30", "n10")
    labels = tmp_path / "ids.txt"
    labels.write_text("n20\nn10\r\n\nn40\nn30\n")
    images = read_set(root, labels=labels)
    (batch,) = images.batches(10)
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 0, 2, 2]  # n10, n20, n30, n40
    assert images.labels.n_classes == 4
    (only,) = read_set(root, labels=labels, limit=1).batches(1)
    assert only.labels == [0 if only.names[0].startswith("n10") else 2]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"n10\n", r"folder n30 is not among the 1 classes of .*give the labels file of this dataset"),
        (b"a\nb\n", "folder n10, n30 is not among the 2 classes"),
        (b"\n", "labels file is empty; expected one class name a line"),
        (b"n10\nn30\nn10\n", "names a class twice: n10"),
        (b"\xff\xfe\x00\x01", "not a text file"),
        (None, "can not be read .No such file"),
    ],
)
def test_labels_files_that_do_not_fit(content, match, tmp_path):
    class_folders(tmp_path / "val", "n30", "n10")
    labels = tmp_path / "ids.txt"
    if content is not None:
        labels.write_bytes(content)
    with pytest.raises(ImageError, match=match):
        open_images(tmp_path / "val", SMALL, labels=labels)


def test_images_outside_class_folders(tmp_path):
    root = tmp_path / "val"
    class_folders(root, "n10")
    (root / "README").write_text("not an image, so no label is missing")
    labels = tmp_path / "ids.txt"
    labels.write_text("n10\n")
    assert read_set(root, labels=labels).labels.indices == (0, 0)
    photo(20, 20).save(root / "loose.png")
    with pytest.raises(ImageError, match=r"loose.png lies in no class folder, so ids.txt gives it no label"):
        open_images(root, SMALL, labels=labels)
    tolerant = read_set(root, labels="folders")
    assert tolerant.labels.indices is None
    assert tolerant.labels.note.startswith("loose.png lies in no class folder of")


def test_class_names_are_sorted_and_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_bytes("\ufeffzebra\n  ant \n".encode())
    assert read_class_names(path) == ("ant", "zebra")


def test_no_labels_unless_they_are_asked_for(tmp_path):
    labels = label_files(tmp_path, ["a/1.png"], ["a/1.png"], None)
    assert (labels.indices, labels.n_classes, labels.note) == (None, None, "")


def test_a_text_names_three_unknown_folders_and_counts_the_rest(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text("n0\n")
    chosen = [f"n{i}/1.png" for i in range(1, 6)]
    with pytest.raises(ImageError, match=r"folder n1, n2, n3 and 2 more is not among the 1 classes of .*ids\.txt"):
        label_files(tmp_path, chosen, chosen, path)
