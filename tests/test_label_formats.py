"""Every way to say the classes, through `evaluate_models`: the right accuracy, and one line that says what was read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from classes import ACCURACY, N_CLASSES, NAMES, SYNSETS, make_classifier, write_classes

from corp_onnx.cli import main
from corp_onnx.errors import ImageError, OptionError
from corp_onnx.evaluate import Evaluation, evaluate_models
from corp_onnx.images import open_images
from corp_onnx.images.labels import LABELS_KEY, ModelClasses, Request, Truth
from corp_onnx.images.truth import label_by_truth

Rows = list[tuple[str, int]]
FEW = "only 36 images say how good the models are"
DIGITS = tuple(f"{k:02d}" for k in range(N_CLASSES))
DESCRIBED = tuple(f"{s} {n}, Genus {n}" for s, n in zip(SYNSETS, NAMES, strict=True))
OWN = {LABELS_KEY: json.dumps(NAMES)}


def lines(*texts: object) -> str:
    return "".join(f"{text}\n" for text in texts)


def measure(tmp_path: Path, labels: str | None, file: str = "labels.txt", **metadata: str) -> Evaluation:
    model = make_classifier(tmp_path / "m.onnx", {key.replace("__", "."): value for key, value in metadata.items()})
    path = None if labels is None else tmp_path / file
    if path is not None:
        path.write_text(labels, encoding="utf-8")
    return evaluate_models([model], tmp_path / "val", labels=path)


def top1(found: Evaluation) -> float:
    assert found.scores[0].top1 is not None
    return found.scores[0].top1


FOLDERS: list[tuple[str, tuple[str, ...], str, str]] = [
    ("index order", NAMES, lines(*NAMES), "12 names in index order, from"),
    ("spelled otherwise", tuple(n.replace(" ", "_").title() for n in NAMES), lines(*NAMES), "12 names in index order"),
    ("first synonyms", NAMES, lines(*(f"{n}, Genus {n}" for n in NAMES)), "12 names in index order"),
    ("folders by number", DIGITS, lines(*NAMES), "class folders by their number, counted from 0"),
    ("folders from 1", tuple(str(k + 1) for k in range(N_CLASSES)), lines(*NAMES), "their number, counted from 1"),
    ("sorted synsets", SYNSETS, lines(*SYNSETS), "12 WordNet ids in sorted order, from"),
    ("shuffled synsets", SYNSETS, lines(*SYNSETS[::-1]), "in sorted order (the file lists them in another, and they"),
    ("synset_words by id", SYNSETS, lines(*DESCRIBED), "12 names in index order"),
    ("synset_words by word", NAMES, lines(*DESCRIBED), "12 names in index order"),
    ("folders of both", tuple(f"{s}_{n}" for s, n in zip(SYNSETS, NAMES, strict=True)), lines(*SYNSETS), "12 WordNet"),
    ("numbered", NAMES, lines(*(f"{k}: {NAMES[k]}" for k in reversed(range(12)))), "by their numbers, counted from 0"),
    ("numbered CSV", NAMES, lines("name,id", *(f"{n},{k}" for k, n in enumerate(NAMES))), "numbers, counted from 0"),
    ("numbered from 1", NAMES, lines(*(f"{k + 1}\t{n}" for k, n in enumerate(NAMES))), "numbers, counted from 1"),
    ("JSON list", NAMES, json.dumps(NAMES), "12 names in index order"),
    ("JSON object", NAMES, json.dumps(dict(enumerate(NAMES))), "12 names in index order"),
    ("JSON of names", NAMES, json.dumps({n: k for k, n in enumerate(NAMES)}), "12 names in index order"),
    ("id2label", NAMES, json.dumps({"model_type": "vit", "id2label": dict(enumerate(NAMES))}), "12 names in index"),
    ("class_index", SYNSETS, json.dumps(dict(enumerate(zip(SYNSETS, NAMES, strict=True)))), "12 names"),
    ("Python", NAMES, str(dict(enumerate(NAMES))), "12 names in index order"),
    ("timm", NAMES, json.dumps({"label_names": SYNSETS, "label_descriptions": dict(zip(SYNSETS, NAMES, strict=True))}),
     "12 names in index order"),
]  # fmt: skip


@pytest.mark.parametrize(("folders", "text", "meaning"), [case[1:] for case in FOLDERS], ids=[c[0] for c in FOLDERS])
def test_class_folders_and_a_file(folders: tuple[str, ...], text: str, meaning: str, tmp_path: Path) -> None:
    write_classes(tmp_path / "val", folders)
    found = measure(tmp_path, text)
    assert top1(found) == pytest.approx(ACCURACY)
    assert meaning in found.labels
    assert str(tmp_path / "labels.txt") in found.labels
    assert [w for w in found.warnings if not w.startswith(FEW)] == []


def by_name(rows: Rows, names: tuple[str, ...], separator: str = ",", header: str = "", folder: str = "") -> str:
    return header + lines(*(f"{folder}{file}{separator}{names[label]}" for file, label in rows))


INDICES = tuple(map(str, range(N_CLASSES)))
TABLES: list[tuple[str, Callable[[Rows], str], str]] = [
    ("CSV of indices", lambda rows: by_name(rows, INDICES), "lines of file and label, counted from 0"),
    ("with a header", lambda rows: by_name(rows, INDICES, header="filename,label\n"), "36 lines of file and label, c"),
    ("label first", lambda rows: lines("class,path", *(f"{c},{f}" for f, c in rows)), "counted from 0"),
    ("from 1", lambda rows: lines(*(f"{f},{c + 1}" for f, c in rows)), "counted from 1"),
    ("TSV of names", lambda rows: by_name(rows, NAMES, "\t"), "classes by the 12 names of the model"),
    ("semicolons, of folders", lambda rows: by_name(rows, DIGITS, ";"), "counted from 0"),
    ("Caffe's val.txt", lambda rows: by_name(rows, INDICES, " "), "counted from 0"),
    ("with a folder in front", lambda rows: by_name(rows, INDICES, " ", folder="val/"), "counted from 0"),
    ("Kaggle's", lambda rows: lines("ImageId,PredictionString", *(f"{f[:-4]},{SYNSETS[c]} 8 1 9 7" for f, c in rows)),
     "12 classes in sorted order"),
    ("more columns", lambda rows: lines("id,file,label,split", *(f"7,{f},{c},val" for f, c in rows)), "counted from 0"),
    ("a number a line", lambda rows: lines(*(c for _, c in rows)), "36 indices in the order of the file names"),
    ("a number a line from 1", lambda rows: lines(*(c + 1 for _, c in rows)), "counted from 1"),
]  # fmt: skip


@pytest.mark.parametrize(("write", "meaning"), [case[1:] for case in TABLES], ids=[case[0] for case in TABLES])
def test_labels_of_single_images(write: Callable[[Rows], str], meaning: str, tmp_path: Path) -> None:
    """In one flat folder, with the file inside it."""
    rows = write_classes(tmp_path / "val")
    own = {"corp_onnx__labels": json.dumps(NAMES)} if meaning.startswith("classes by") else {}
    found = measure(tmp_path, write(rows), "val/labels.csv", **own)
    assert top1(found) == pytest.approx(ACCURACY)
    assert meaning in found.labels
    drawn = evaluate_models([tmp_path / "m.onnx"], tmp_path / "val", labels=tmp_path / "val/labels.csv", limit=20)
    assert drawn.n_images == 20
    assert top1(drawn) >= (20 - 5) / 20


def test_tables_also_speak_of_images_in_folders(tmp_path: Path) -> None:
    rows = write_classes(tmp_path / "val", ("even", "odd") * 6)
    assert {file.split("/")[0] for file, _ in rows} == {"even", "odd"}
    assert top1(measure(tmp_path, by_name(rows, INDICES))) == pytest.approx(ACCURACY)
    plain = lines(*(f"{file.split('/')[1]},{label}" for file, label in rows))
    assert top1(measure(tmp_path, plain)) == pytest.approx(ACCURACY)


@pytest.mark.parametrize(
    "metadata",
    [
        {"corp_onnx__labels": json.dumps(NAMES)},
        {"names": str(dict(enumerate(NAMES)))},
        {"class_names": json.dumps(dict(enumerate(NAMES)))},
    ],
    ids=["ours", "Ultralytics", "Deepness"],
)
def test_the_models_own_names_come_first(metadata: dict[str, str], tmp_path: Path) -> None:
    write_classes(tmp_path / "val", NAMES)
    found = measure(tmp_path, None, **metadata)
    assert top1(found) == pytest.approx(ACCURACY)
    assert found.labels == "class folders among the 12 names of the model"


def test_names_beside_the_model_count_as_its_own(tmp_path: Path) -> None:
    """As in a download from Hugging Face: onnx/model.onnx, and config.json above it."""
    write_classes(tmp_path / "val", NAMES)
    (tmp_path / "hub" / "onnx").mkdir(parents=True)
    model = make_classifier(tmp_path / "hub" / "onnx" / "m.onnx")
    (tmp_path / "hub" / "config.json").write_text(json.dumps({"id2label": dict(enumerate(NAMES))}))
    found = evaluate_models([model], tmp_path / "val")
    assert top1(found) == pytest.approx(ACCURACY)
    assert found.labels.endswith("config.json")
    unnamed = {"id2label": {k: f"LABEL_{k}" for k in range(N_CLASSES)}}
    (tmp_path / "hub" / "config.json").write_text(json.dumps(unnamed))
    assert evaluate_models([model], tmp_path / "val").labels == "12 class folders in sorted order"


def test_some_folders_are_enough_for_a_model_with_names(tmp_path: Path) -> None:
    """Where it has none their order is not known."""
    write_classes(tmp_path / "all", NAMES)
    (tmp_path / "val").mkdir()
    for name in ("fox", "great dane"):
        (tmp_path / "all" / name).rename(tmp_path / "val" / name)
    assert top1(measure(tmp_path, None, corp_onnx__labels=json.dumps(NAMES))) > 0.5
    with pytest.raises(OptionError, match=r"no top-1, because .* 2 class folders and m\.onnx has 12 classes, so fo"):
        measure(tmp_path, None)


def test_folders_of_synsets_count_in_sorted_order_beside_a_model_with_words(tmp_path: Path) -> None:
    write_classes(tmp_path / "val", SYNSETS)
    found = measure(tmp_path, None, corp_onnx__labels=json.dumps(NAMES))
    assert top1(found) == pytest.approx(ACCURACY)
    assert found.labels == "12 WordNet ids, the class folders, in sorted order"


def test_folders_of_numbers_that_sort_as_words_say_so(tmp_path: Path) -> None:
    """A model that was trained with torchvision's ImageFolder on 0, 1, ..., 11 has 10 as its third class."""
    write_classes(tmp_path / "val", tuple(sorted(INDICES)))
    found = measure(tmp_path, None)
    assert top1(found) == pytest.approx(ACCURACY)
    assert found.labels == "12 class folders in sorted order (0, 1, 10, ..., as torchvision's ImageFolder counts them)"
    by_number = measure(tmp_path, lines(*(f"name {k}" for k in range(N_CLASSES))))
    assert by_number.labels.endswith("class folders by their number, counted from 0")


def test_a_file_in_another_order_than_the_model_is_refused(tmp_path: Path) -> None:
    write_classes(tmp_path / "val", NAMES)
    sentence = r"labels\.txt and .*m\.onnx have the same class names in different orders: 'zebra' is class 11 of the "
    with pytest.raises(ImageError, match=sentence + r"one and class 0 of the other; leave the labels file out"):
        measure(tmp_path, lines(*sorted(NAMES)), corp_onnx__labels=json.dumps(NAMES))
    assert top1(measure(tmp_path, lines(*NAMES), corp_onnx__labels=json.dumps(NAMES))) == pytest.approx(ACCURACY)


def test_two_models_of_different_orders_are_refused(tmp_path: Path) -> None:
    write_classes(tmp_path / "val", NAMES)
    first = make_classifier(tmp_path / "a.onnx", OWN)
    other = make_classifier(tmp_path / "b.onnx", {LABELS_KEY: json.dumps(NAMES[::-1])}, order=list(range(12))[::-1])
    assert top1(evaluate_models([other], tmp_path / "val")) == pytest.approx(ACCURACY)
    with pytest.raises(ImageError, match=r"a\.onnx and .*b\.onnx have the same class names .* evaluate each of them"):
        evaluate_models([first, other], tmp_path / "val")


def test_a_model_without_names_takes_those_of_its_reference(tmp_path: Path) -> None:
    write_classes(tmp_path / "val", NAMES)
    first, other = make_classifier(tmp_path / "a.onnx", OWN), make_classifier(tmp_path / "b.onnx")
    found = evaluate_models([other], tmp_path / "val", reference=first)
    assert top1(found) == pytest.approx(ACCURACY)


def test_names_in_another_order_are_flagged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The trap itself: a file that nothing contradicts and that is not the model's order."""
    write_classes(tmp_path / "val", NAMES)
    found = measure(tmp_path, lines(*sorted(NAMES)))
    assert top1(found) < 0.3
    few, warning = found.warnings
    assert few.startswith(FEW)
    assert "is at chance" in warning
    assert "and yet images of the same label get the same answer" in warning
    assert "the labels are probably in another order" in warning
    model, val = tmp_path / "m.onnx", tmp_path / "val"
    assert main(["evaluate", str(model), "--images", str(val), "--labels", str(tmp_path / "labels.txt")]) == 0
    out, err = capfd.readouterr()
    assert f"labels: 12 names in index order, from {tmp_path / 'labels.txt'}\n" in out
    assert "the labels are probably in another order" in err


def test_labels_by_keyword_and_names_in_a_list(tmp_path: Path) -> None:
    write_classes(tmp_path / "val", NAMES)
    model = make_classifier(tmp_path / "m.onnx")
    assert top1(evaluate_models([model], str(tmp_path / "val"), labels=NAMES)) == pytest.approx(ACCURACY)
    (tmp_path / "names.txt").write_text(lines(*NAMES))
    again = open_images(tmp_path / "val", labels=tmp_path / "names.txt")
    assert top1(evaluate_models([model], again)) == pytest.approx(ACCURACY)
    plain = open_images(tmp_path / "val")
    assert top1(evaluate_models([model], plain, labels=tmp_path / "names.txt")) == pytest.approx(ACCURACY)


REFUSED: list[tuple[str, tuple[str, ...], str, str]] = [
    ("ids of the devkit", (), lines(490, 361, 171, 822, 297, *[1] * 31), r"holds the ids of ILSVRC2012's devkit"),
    ("base unknown", (), lines(*[1, 2, 3] * 12), r"its indices hold neither 0 nor 12, so they may be counted from"),
    ("too high", (), lines(*[0, 12] * 18), r"its indices go up to 12, and m\.onnx has 12 classes; give the labels of"),
    ("other images", (), "x.png,0\ny.png,1\n", r"names none of the images of .* \(first x\.png, and there ILSVRC2012"),
    ("some images", (), "ILSVRC2012_val_00000001.png,0\n", r"has no line for 35 of 36 images of .* add them, or take"),
    ("two labels", (), "ILSVRC2012_val_00000001.png,0\nILSVRC2012_val_00000001.png,1\n", r"gives ILSVRC.* more than"),
    ("columns", (), "a.png,1,2\nb.png,3,4\n", r"has 2 columns beside the files, and no header calls one of them label"),
    ("in folders", NAMES, lines(*[0] * 36), r"a number a line, one for each image, and .* lies in a folder, so their"),
    ("too many names", NAMES, lines(*NAMES, "k"), r"13 class names, and m\.onnx has 12 classes; give the labels file"),
    ("other folders", ("x", *NAMES[1:]), lines(*NAMES), r"folder x is not among the 12 classes of .*; give"),
    ("two classes", ("a b", *NAMES[1:]), lines("a_b", "a-b", *NAMES[2:]), r"folder a b could be class 0 or 1 of"),
    ("flat", (), lines(*NAMES), r"lies in no class folder, so labels\.txt gives it no label"),
]  # fmt: skip


@pytest.mark.parametrize(("folders", "text", "match"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED])
def test_refused_with_a_sentence(folders: tuple[str, ...], text: str, match: str, tmp_path: Path) -> None:
    write_classes(tmp_path / "val", folders)
    with pytest.raises(ImageError, match=match):
        measure(tmp_path, text)


def test_truth_of_other_images_counts_by_their_number(tmp_path: Path) -> None:
    """A part of the validation set with the whole file; elsewhere the numbers of lines and images must be the same."""
    rows = write_classes(tmp_path / "val")
    for file, _ in rows[::3]:
        (tmp_path / "val" / file).unlink()
    text = lines(*(label for _, label in rows))
    assert top1(measure(tmp_path, text)) > 0.7
    for file, _ in rows[1::3] + rows[2::3]:
        (tmp_path / "val" / file).rename(tmp_path / "val" / f"x{file}")
    with pytest.raises(ImageError, match=r"36 lines, and .*val holds 24 images; expected a number for each"):
        measure(tmp_path, text)


def test_1000_indices_from_1_say_which_order_is_assumed() -> None:
    names = [f"{k:04d}.png" for k in range(1000)]
    truth = Truth(tuple(str(k + 1) for k in range(1000)), None, Path("truth.txt"))
    request = Request(Path("val"), truth, (), tuple(names))
    found = label_by_truth(names, request, truth, ModelClasses(Path("m.onnx"), 1000))
    assert found.indices == tuple(range(1000))
    assert "taken for sorted synsets, not for ids of ILSVRC2012's devkit" in found.meaning
    unknown = label_by_truth(names, request, truth, None)
    assert unknown.indices is None
    assert "whether they are counted from 0 or from 1" in unknown.note


class TestNothingToMeasure:
    def test_is_refused_before_any_work(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        write_classes(tmp_path / "val")
        assert main(["evaluate", str(tmp_path / "no.onnx"), "--images", str(tmp_path / "val")]) == 2
        err = capfd.readouterr().err
        assert "val: no class folders (ILSVRC2012_val_00000001.png lies in no class folder of" in err
        assert "no --labels and no --reference: nothing to measure. Give one of them." in err

    def test_of_names_that_fit_no_folder(self, tmp_path: Path) -> None:
        write_classes(tmp_path / "val", tuple("abcdefghijkl"))
        with pytest.raises(OptionError, match=r"no class folder of .*val \(a, b, c and 9 more\) is one of the 12"):
            measure(tmp_path, None, corp_onnx__labels=json.dumps(NAMES))

    def test_of_names_that_fit_some_folders(self, tmp_path: Path) -> None:
        write_classes(tmp_path / "val", ("odd one", *NAMES[1:]))
        with pytest.raises(OptionError, match=r"class folder odd one of .*val is not one of the 12 names of the"):
            measure(tmp_path, None, corp_onnx__labels=json.dumps(NAMES))


def test_labels_of_other_names_than_the_models(tmp_path: Path) -> None:
    rows = write_classes(tmp_path / "val")
    text = by_name(rows, (*(f"name {k}" for k in range(11)), "name 0"))
    with pytest.raises(ImageError, match=r"label name 0, name 1, name 10 and 8 more is not one of the 12 names of the"):
        measure(tmp_path, text, corp_onnx__labels=json.dumps(NAMES))
    with pytest.raises(ImageError, match=r"11 different labels, and m\.onnx has 12 classes and carries no names of th"):
        measure(tmp_path, text)
