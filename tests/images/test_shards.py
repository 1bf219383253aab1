"""Parquet and tar shards: the images of the folder they were packed from, drawn without being read, bad ones named."""

from __future__ import annotations

import gzip
import json
import pickle
import sys
import tarfile
import warnings
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packed import add_member, pack_parquet, pack_tar, read_files
from photos import all_pixels, photo, read_set, write_photos
from samples import OPERATOR, fixture_path, paper

from corp_onnx.cli import main
from corp_onnx.errors import ImageError, MissingExtraError
from corp_onnx.evaluate import evaluate_models
from corp_onnx.images import parquet, require_path, split_holdout, tarball
from corp_onnx.images.labelling import label_files
from corp_onnx.images.labels import ClassNames, ModelClasses
from corp_onnx.images.open import spread_images
from corp_onnx.images.places import expand_braces, find_url, name_places
from corp_onnx.images.source import ShardNames
from corp_onnx.images.variety import describe_monotony
from corp_onnx.prune import prune_model

KINDS = ("struct", "binary", "tar")


def pack(kind: str, files: list[Any], to: Path, **options: Any) -> Path:
    return (
        pack_tar(files, to, **options) if kind == "tar" else pack_parquet(files, to, plain=kind == "binary", **options)
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_photos(tmp_path / "photos", 11)
    return tmp_path / "photos"


@pytest.mark.parametrize("kind", KINDS)
class TestBothKinds:
    def test_the_images_are_those_of_the_folder(self, kind: str, photos: Path, tmp_path: Path) -> None:
        packed = read_set(pack(kind, read_files(photos), tmp_path / "packed", shards=3))
        expected = read_set(photos)
        assert packed.n_images == packed.n_files == 11
        for batch_size in (1, 4, 20):
            np.testing.assert_array_equal(all_pixels(packed, batch_size), all_pixels(expected, batch_size))
        assert packed.skipped == ()
        names = [name for batch in packed.batches(4) for name in batch.names]
        assert names == list(packed.names)
        assert names[5] == ("shard-001.tar/005.png" if kind == "tar" else "train-00001.parquet[1]")

    def test_draws_and_splits_are_those_of_the_folder(self, kind: str, photos: Path, tmp_path: Path) -> None:
        where = pack(kind, read_files(photos), tmp_path / "packed", shards=2)
        for seed in (0, 3):
            one, other = read_set(where, limit=5, seed=seed), read_set(photos, limit=5, seed=seed)
            np.testing.assert_array_equal(all_pixels(one), all_pixels(other))
            pairs = zip(split_holdout(one, 0.4, 1), split_holdout(other, 0.4, 1), strict=True)
            for own, expected in pairs:
                np.testing.assert_array_equal(all_pixels(own), all_pixels(expected))  # type: ignore[arg-type]
        packed, whole = read_set(where), read_set(photos)
        np.testing.assert_array_equal(all_pixels(spread_images(packed, 4)), all_pixels(spread_images(whole, 4)))  # type: ignore[arg-type]
        np.testing.assert_array_equal(all_pixels(packed.select([9, 2, 4, 3])), all_pixels(whole.select([9, 2, 4, 3])))

    def test_opening_reads_no_image(
        self, kind: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        where = pack(kind, read_files(photos), tmp_path / "packed")
        monkeypatch.setattr(parquet, "_read_column", lambda *_: pytest.fail("read"))
        monkeypatch.setattr(tarball.TarShards, "_read", lambda *_: pytest.fail("read"))
        found = read_set(where, limit=4)
        assert isinstance(found.names, ShardNames)
        assert (found.n_images, found.n_files) == (4, 11)

    def test_a_bad_image_is_named_by_its_shard(self, kind: str, photos: Path, tmp_path: Path) -> None:
        files = read_files(photos)
        files[7] = (files[7][0], files[7][1][:60])
        files[9] = (files[9][0], b"")
        packed = read_set(pack(kind, files, tmp_path / "packed"))
        for _ in range(2):
            assert sum(len(batch) for batch in packed.batches(4)) == 9
        found = {skip.name: skip.reason for skip in packed.skipped}
        expected = ["shard-001.tar/007.png", "shard-001.tar/009.png"]
        assert list(found) == (expected if kind == "tar" else ["train-00001.parquet[1]", "train-00001.parquet[3]"])
        assert list(found.values())[1] == "an empty file"
        assert packed.n_images == 9
        with pytest.raises(ImageError, match=r"packed: 9 readable images among 11 files, and at least 10 needed"):
            list(read_set(tmp_path / "packed", minimum=10).batches(4))

    def test_identity_is_of_the_content_and_costs_no_second_reading(
        self, kind: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        files = read_files(photos)
        packed = read_set(pack(kind, files, tmp_path / "packed"), limit=6)
        fresh = packed.data_hash()
        other = read_set(tmp_path / "packed", limit=6)
        all_pixels(other)
        monkeypatch.setattr(parquet, "_read_column", lambda *_: pytest.fail("read"))
        monkeypatch.setattr(tarball.TarShards, "_read", lambda *_: iter(()))
        assert other.data_hash() == fresh
        monkeypatch.undo()
        pack(kind, [*files[:3], (files[3][0], files[4][1]), *files[4:]], tmp_path / "changed")
        assert read_set(tmp_path / "changed").data_hash() != read_set(tmp_path / "packed").data_hash()

    def test_labels_beside_the_images(self, kind: str, photos: Path, tmp_path: Path) -> None:
        labels = [i % 4 for i in range(11)]
        where = pack(kind, read_files(photos), tmp_path / "packed", labels=labels)
        found = read_set(where, labels="folders", limit=7, seed=2)
        expected = read_set(photos, limit=7, seed=2)
        assert found.labels.indices == tuple(labels[int(Path(name).stem)] for name in expected.names)
        assert found.labels.meaning.startswith("7 lines of file and label, counted from 0, from ")
        assert [int(v) for b in found.batches(3) for v in b.labels] == list(found.labels.indices or ())  # type: ignore[union-attr]
        bare = read_set(pack(kind, read_files(photos), tmp_path / "bare"), labels="folders")
        assert (bare.labels.indices, bare.labels.note) == (None, f"no label beside every image of {tmp_path / 'bare'}")

    def test_one_shard_a_pattern_and_a_list_in_braces(self, kind: str, photos: Path, tmp_path: Path) -> None:
        where = pack(kind, read_files(photos), tmp_path / "packed", shards=3)
        ending, first, width = (".tar", "shard-", 3) if kind == "tar" else (".parquet", "train-", 5)
        one = where / f"{first}{1:0{width}d}{ending}"
        assert read_set(one).n_images == 4
        one.rename(tmp_path / "renamed")
        assert read_set(tmp_path / "renamed").n_images == 4  # known by its content
        (tmp_path / "renamed").rename(one)
        assert read_set(where / f"{first}*{ending}").n_images == 11
        assert read_set(where / f"{first}{{{1:0{width}d}..{2:0{width}d}}}{ending}").n_images == 7
        require_path(where / f"{first}*{ending}")
        with pytest.raises(ImageError, match=rf"{first}0*3{ending}: no such file; the pattern names it"):
            read_set(where / f"{first}{{{2:0{width}d}..{4:0{width}d}}}{ending}")

    def test_urls_also_as_paths(self, kind: str, photos: Path, tmp_path: Path) -> None:
        where = pack(kind, read_files(photos), tmp_path / "packed")
        folder = f"memory://{tmp_path.name}-{kind}"
        system = fsspec.filesystem("memory")
        for file in where.iterdir():
            system.pipe_file(f"{folder}/{file.name}", file.read_bytes())
        system.pipe_file(f"{folder}/README.md", b"about")
        ending = ".tar" if kind == "tar" else ".parquet"
        for source in (folder, f"{folder}/*{ending}", Path(folder)):
            found = read_set(source)  # type: ignore[arg-type]
            np.testing.assert_array_equal(all_pixels(found), all_pixels(read_set(photos)))
            assert str(found.root).startswith(folder)
        drawn = read_set(Path(folder), limit=5)
        assert drawn.n_images == 5
        assert drawn.note.startswith(f"the first 5 images of {Path(folder)}" if kind == "tar" else "")
        assert bool(drawn.note) == (kind == "tar") == bool(describe_monotony(drawn))
        with pytest.raises(ImageError, match=r"memory://.*/no.(tar|parquet)"):
            read_set(f"{folder}/no{ending}")  # type: ignore[arg-type]
        system.rm(folder, recursive=True)

    def test_what_is_missing_is_said(
        self, kind: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        where = pack(kind, read_files(photos), tmp_path / "packed")
        monkeypatch.setitem(sys.modules, "fsspec", None)
        with pytest.raises(
            MissingExtraError, match=r"s3://a/b.tar: to read URLs takes fsspec: pip install 'corp-onnx\[sh"
        ):
            read_set("s3://a/b.tar")  # type: ignore[arg-type]
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
        if kind == "tar":
            assert read_set(where).n_images == 11
        else:
            with pytest.raises(
                MissingExtraError, match=r"train-00000.parquet: to read Parquet takes pyarrow: pip install"
            ):
                read_set(where)


class TestParquet:
    def test_only_row_groups_with_drawn_rows_are_read(self, photos: Path, tmp_path: Path) -> None:
        where = pack_parquet(read_files(photos), tmp_path / "packed", shards=1, group=4) / "train-00000.parquet"
        about = pq.read_metadata(where).row_group(1).column(0)
        content = bytearray(where.read_bytes())
        start = about.dictionary_page_offset or about.data_page_offset
        content[start : start + about.total_compressed_size] = b"\xff" * about.total_compressed_size
        where.write_bytes(bytes(content))
        whole = read_set(where)
        assert sum(len(batch) for batch in whole.select([0, 3, 8, 10]).batches(2)) == 4
        with pytest.raises(ImageError, match=r"train-00000.parquet: can not be read \(.+\); replace or remove it"):
            list(whole.batches(2))

    def test_a_spoilt_shard_is_left_out(self, photos: Path, tmp_path: Path) -> None:
        where = pack_parquet(read_files(photos), tmp_path / "packed", shards=2)
        (where / "train-00000.parquet").write_bytes(b"PAR1 and no more")
        found = read_set(where)
        assert found.n_images == 5
        assert [skip.name for skip in found.skipped] == ["train-00000.parquet"]
        (where / "train-00001.parquet").write_bytes(b"")
        with pytest.raises(ImageError, match=r"train-00000.parquet: .+; expected Parquet files of images"):
            read_set(where)

    def test_the_column_is_found_or_those_there_are_named(self, photos: Path, tmp_path: Path) -> None:
        contents = pa.array([content for _, content in read_files(photos)], pa.large_binary())
        masks = pa.array([b"no image"] * 11, pa.binary())
        pq.write_table(pa.table({"mask": masks, "jpg": contents, "id": list(range(11))}), tmp_path / "a.parquet")
        assert all_pixels(read_set(tmp_path / "a.parquet")).shape[0] == 11
        pq.write_table(pa.table({"anything": contents}), tmp_path / "b.parquet")
        assert all_pixels(read_set(tmp_path / "b.parquet")).shape[0] == 11
        pq.write_table(pa.table({"one": masks, "two": contents}), tmp_path / "c.parquet")
        with pytest.raises(
            ImageError, match=r"expected one column of encoded images, called image.*one \(binary\), two"
        ):
            read_set(tmp_path / "c.parquet")

    def test_class_names_in_another_order_than_the_models_are_refused(self, photos: Path, tmp_path: Path) -> None:
        labels = [0, 1] * 5 + [0]
        where = pack_parquet(read_files(photos), tmp_path / "p", shards=1, labels=labels) / "train-00000.parquet"
        features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
        table = pq.read_table(where)
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), where)
        found = read_set(where, labels="folders")
        own, other = (
            ModelClasses(Path("m.onnx"), 2, ClassNames(names, Path("m.onnx"), ""))
            for names in ((("cat",), ("dog",)), (("dog",), ("cat",)))
        )
        assert label_files(found.names, found.labels.request, own).indices == tuple(labels)
        with pytest.raises(ImageError, match=r"same class names in different orders: .*; give labels in"):
            label_files(found.names, found.labels.request, other)

    def test_images_kept_as_paths_are_bad_ones(self, photos: Path, tmp_path: Path) -> None:
        files: list[Any] = read_files(photos)
        files[2] = (files[2][0], None)
        found = read_set(pack_parquet(files, tmp_path / "packed"))
        assert sum(len(batch) for batch in found.batches(4)) == 10


class TestTar:
    def test_what_is_sent_to_another_process_knows_its_own_members_alone(self, photos: Path, tmp_path: Path) -> None:
        where = pack_tar(read_files(photos), tmp_path / "packed", shards=3, labels=list(range(11)))
        some = read_set(where).select([9, 2, 3, 10])
        sent = pickle.loads(pickle.dumps(some.alone()))
        assert tuple(sent.names) == tuple(some.names)
        assert sent.source.n_rows == 4
        np.testing.assert_array_equal(all_pixels(sent), all_pixels(some))
        assert sent.data_hash() == some.data_hash()
        assert sent.source.read_truth(sent.names).values == ("9", "2", "3", "10")

    def test_masks_texts_and_hidden_members_are_no_images(self, tmp_path: Path) -> None:
        photo(20, 20).save(tmp_path / "a.png")
        content = (tmp_path / "a.png").read_bytes()
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            for name in ("d/0.jpg", "d/0.seg.png", "d/0.json", "d/._0.jpg", "a.b.png", "a.c.png", "readme"):
                add_member(tar, name, content)
        assert list(read_set(tmp_path / "x.tar").names) == ["x.tar/d/0.jpg", "x.tar/a.b.png", "x.tar/a.c.png"]

    def test_a_shard_that_ends_early_gives_what_it_has(self, photos: Path, tmp_path: Path) -> None:
        where = pack_tar(read_files(photos), tmp_path / "packed")
        first = where / "shard-000.tar"
        first.write_bytes(first.read_bytes()[:3000])
        found = read_set(where)
        n_found = found.n_images
        assert 5 < n_found < 11
        assert [s.name for s in found.skipped] == ["shard-000.tar"]
        assert found.skipped[0].reason.startswith("ends after ")
        assert sum(len(batch) for batch in found.batches(3)) in (n_found, n_found - 1)

    def test_compressed_and_empty_ones(self, photos: Path, tmp_path: Path) -> None:
        where = pack_tar(read_files(photos), tmp_path / "packed", shards=1) / "shard-000.tar"
        (tmp_path / "z.tar").write_bytes(gzip.compress(where.read_bytes()))
        with pytest.raises(
            ImageError, match=r"z.tar: is no tar file that can be read .*; if it is compressed, unpack it"
        ):
            read_set(tmp_path / "z.tar")
        with tarfile.open(tmp_path / "n.tar", "w") as tar:
            add_member(tar, "readme.txt", b"nothing")
        with pytest.raises(ImageError, match=r"n.tar: no member with the suffix of an image; expected tar shards"):
            read_set(tmp_path / "n.tar")


def test_shards_can_be_calibrated_and_pruned(photos: Path, tmp_path: Path) -> None:
    """The same file as from the folder, and from a calibration file that names shards."""
    model = fixture_path(OPERATOR)
    prune_model(model, photos, tmp_path / "a.onnx", settings=paper())
    for kind in ("struct", "tar"):
        where = pack(kind, read_files(photos), tmp_path / kind)
        result = prune_model(model, where, tmp_path / f"{kind}.onnx", settings=paper())
        assert (tmp_path / f"{kind}.onnx").read_bytes() == (tmp_path / "a.onnx").read_bytes()
        assert (result.calibration.path, result.calibration.recipe_origin) == (str(where), "guessed (ImageNet, 8)")
        calibration = tmp_path / f"{kind}.safetensors"
        words = [str(model), "-o", str(calibration), "--preset", "paper"]
        assert main(["calibrate", *words, "--calib", str(where), "--no-choosing"]) == 0
        found = prune_model(model, None, tmp_path / f"{kind}2.onnx", settings=paper(calibration=str(calibration)))
        assert found.calibration.data_hash == result.calibration.data_hash


def test_merged_calibrations_of_shards_and_of_a_folder_can_be_pruned_with(photos: Path, tmp_path: Path) -> None:
    model = str(fixture_path(OPERATOR))
    write_photos(tmp_path / "more", 9, first=30)
    write_photos(tmp_path / "others", 9, first=60)
    dotted = [(f"./{name}", content) for name, content in read_files(photos)]  # as `tar -cf a.tar .` calls them
    places = [pack_tar(dotted, tmp_path / "a"), pack_parquet(read_files(tmp_path / "more"), tmp_path / "b"),
              tmp_path / "others"]  # fmt: skip
    files = [str(tmp_path / f"{i}.safetensors") for i in range(3)]
    for place, file in zip(places, files, strict=True):
        words = [model, "--calib", str(place), "-o", file, "--preset", "paper", "--no-choosing"]
        assert main(["calibrate", *words]) == 0
    merged = str(tmp_path / "merged.safetensors")
    assert main(["merge", *files, "-o", merged]) == 0
    found = prune_model(model, None, tmp_path / "m.onnx", settings=paper(calibration=merged))
    assert found.calibration.n_images + found.calibration.n_held_out == 29


def test_accuracy_with_the_labels_beside_the_images(photos: Path, tmp_path: Path) -> None:
    model = fixture_path(OPERATOR)
    labels = [i % 3 for i in range(11)]
    by_table = tmp_path / "labels.csv"
    by_table.write_text("".join(f"{i:03d}.png,{label}\n" for i, label in enumerate(labels)))
    expected = evaluate_models([model], photos, labels=by_table)
    for kind in ("struct", "tar"):
        found = evaluate_models([model], pack(kind, read_files(photos), tmp_path / kind, labels=labels))
        assert found.scores[0].figures == expected.scores[0].figures


class TestPlaces:
    def test_names_tell_shards_of_one_name_apart(self, photos: Path, tmp_path: Path) -> None:
        for part in ("a", "b"):
            pack_tar(read_files(photos), tmp_path / "packed" / part, shards=1)
        found = read_set(tmp_path / "packed")
        assert (found.names[0], found.names[11]) == ("a/shard-000.tar/000.png", "b/shard-000.tar/000.png")
        assert name_places(["s3://b/x/1.tar", "s3://b/x/2.tar"]) == ["1.tar", "2.tar"]
        assert name_places(["x/y.tar"]) == ["y.tar"]

    def test_braces(self) -> None:
        assert expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
        assert expand_braces("{a,b}{2..1}") == ["a2", "a1", "b2", "b1"]
        with pytest.raises(ImageError, match=r"'\{x\}' is neither a range such as \{000..012\} nor a list"):
            expand_braces("a{x}")
        with pytest.raises(ImageError, match="stands for 10000000 files"):
            expand_braces("{0..9999999}")

    def test_urls_and_paths(self) -> None:
        assert find_url("s3://a/b.tar") == find_url(Path("s3://a/b.tar")) == "s3://a/b.tar"
        assert find_url(Path("simplecache::s3://a/b")) == "simplecache::s3://a/b"
        assert find_url("C:/photos") is None
        assert find_url("photos/a:b") is None

    def test_an_unknown_file_system(self) -> None:
        with pytest.raises(MissingExtraError, match=r"nowhere://a/b.tar: fsspec can not read nowhere"):
            read_set("nowhere://a/b.tar")  # type: ignore[arg-type]

    def test_folders_with_both_kinds_and_with_images(self, photos: Path, tmp_path: Path) -> None:
        pack_parquet(read_files(photos), photos.parent / "both")
        pack_tar(read_files(photos), photos.parent / "both")
        with pytest.raises(ImageError, match=r"both: holds .parquet and .tar files; give one kind"):
            read_set(tmp_path / "both")
        pack_parquet(read_files(photos), photos)  # beside images they are what else lies there
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = read_set(photos)
        assert found.n_images == 11
        assert {skip.reason for skip in found.skipped} == {"not an image"}
