"""Compile classify.cpp against the headers and libraries that OpenVINO's package on PyPI carries.

    pip install openvino
    python build.py -o classify

Needs a C++ compiler of C++17 (CXX, or g++).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).resolve().parent / "classify.cpp"


def main() -> None:
    """Compile it, or say what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("classify"))
    output = parser.parse_args().output
    found = importlib.util.find_spec("openvino")
    if found is None or found.origin is None:
        parser.error("OpenVINO is not installed here: pip install openvino")
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        parser.error(f"{compiler} is not installed here; name a C++ compiler in CXX, or (Debian) apt-get install g++")
    package = Path(found.origin).parent
    libraries = package / "libs"
    (library,) = libraries.glob("libopenvino.so.*")  # the package has no link without a number
    command = [
        compiler, "-std=c++17", "-O2", str(SOURCE), "-o", str(output), f"-I{package / 'include'}", str(library),
        f"-Wl,-rpath,{libraries}", f"-Wl,-rpath-link,{libraries}",
    ]  # fmt: skip
    done = subprocess.run(command, check=False)
    if done.returncode:
        parser.exit(1, f"{compiler} ends with {done.returncode}\n")


if __name__ == "__main__":
    main()
