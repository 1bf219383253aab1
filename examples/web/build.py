"""Put the page, ONNX Runtime Web and the models into one folder that any web server can serve.

    npm install && pip install onnx
    python build.py deit.onnx deit.pruned.onnx --samples photos/ -o site
    python -m http.server --directory site

Files written by corp-onnx say how pictures are prepared for them; a dense model that does not takes what the first
one that does says.
"""

from __future__ import annotations

import argparse
import errno
import json
import shutil
from pathlib import Path
from urllib.parse import quote

import onnx
from google.protobuf.message import DecodeError

RECIPE, LABELS = "corp_onnx.preprocessing", "corp_onnx.labels"
HERE = Path(__file__).parent
PAGE = ("index.html", "style.css", "app.js", "recipe.js")
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.onnx")
    parser.add_argument("-o", "--output", type=Path, default=Path("site"), metavar="DIR")
    parser.add_argument("--samples", nargs="+", type=Path, default=[], metavar="PICTURE",
                        help="pictures to try; of a folder the first picture of each class")  # fmt: skip
    parser.add_argument("--runtime", type=Path, default=HERE / "node_modules/onnxruntime-web/dist", metavar="DIR",
                        help="the dist folder of the npm package onnxruntime-web")  # fmt: skip
    arguments = parser.parse_args()
    samples = [picture for path in arguments.samples for picture in find_samples(path)]
    for paths, what in ((arguments.models, "models"), (samples, "samples")):
        if len({path.name for path in paths}) < len(paths):
            parser.error(f"two {what} have the same file name; rename one.")
    try:
        metadata = [read_metadata(path) for path in arguments.models]
        carried = next((found for found in metadata if RECIPE in found), None)
        if carried is None:
            parser.error(f"none of the models says how pictures are prepared for it ({RECIPE}).")
        (arguments.output / "ort").mkdir(parents=True, exist_ok=True)
        for name in RUNTIME:
            place(arguments.runtime / name, arguments.output / "ort")
        for name in PAGE:
            place(HERE / name, arguments.output)
        for path in arguments.models:
            place(path, arguments.output)
        (arguments.output / "samples").mkdir(exist_ok=True)
        for path in samples:
            place(path, arguments.output / "samples")
    except OSError as error:
        parser.error(
            f"{error.filename}: {error.strerror}" + ("; run npm install first." if error.errno == errno.ENOENT else ".")
        )
    described = [
        {
            "name": path.stem,
            "file": path.name,
            "bytes": path.stat().st_size,
            "recipe": json.loads(found.get(RECIPE, carried[RECIPE])),
            "labels": json.loads(found.get(LABELS, carried.get(LABELS, "[]"))),
        }
        for path, found in zip(arguments.models, metadata, strict=True)
    ]
    site = {"models": described, "samples": [f"samples/{quote(path.name)}" for path in samples]}
    (arguments.output / "models.json").write_text(json.dumps(site), encoding="utf-8")
    print(f"python -m http.server --directory {arguments.output}")


def find_samples(path: Path) -> list[Path]:
    """A picture itself; of a folder its first picture, or the first one of each folder in it."""
    if not path.is_dir():
        return [path]
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir()) or [path]
    return [min(files) for folder in folders if (files := [entry for entry in folder.iterdir() if entry.is_file()])]


def place(path: Path, folder: Path) -> None:
    """Copy a file into a folder, unless it lies there already."""
    target = folder / path.name
    if not (target.exists() and target.samefile(path)):
        shutil.copy(path, target)


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a model whose weights lie inside the file, as a browser needs them."""
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise OSError(errno.EINVAL, "is no ONNX file", str(path)) from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise OSError(errno.EINVAL, "its weights lie in a file of their own, which this page does not load", str(path))
    return {entry.key: entry.value for entry in model.metadata_props}


if __name__ == "__main__":
    main()
