"""ncnn behind pnnx, its converter. It knows no batch: images go one by one."""

from __future__ import annotations

import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import ncnn
import numpy as np

from runners.child import THREADS

PNNX = Path(sysconfig.get_paths()["purelib"]) / "pnnx" / "pnnx"


def load(path: Path, shape: tuple[int, ...], folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """A network converted at batch 1."""
    if shape[0] != 1:
        raise ValueError("ncnn knows no batch")
    model = folder / "model.onnx"
    model.symlink_to(path.resolve())
    shown = "[" + ",".join(map(str, shape)) + "]"
    command = [str(PNNX), str(model), f"inputshape={shown}", "fp16=0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    if done.returncode or not (folder / "model.ncnn.bin").exists():
        said = (done.stderr.strip().splitlines() or done.stdout.strip().splitlines() or ["nothing"])[-1]
        raise ValueError(f"pnnx ends with {done.returncode}, its last line: {said}")
    layers = dict.fromkeys(line.split()[0] for line in (folder / "model.ncnn.param").read_text().splitlines()[2:])
    unknown = [name for name in layers if ncnn.create_layer(name) is None]
    if unknown:
        raise ValueError(f"ncnn knows no {', '.join(unknown)}, which pnnx left in the model")
    network = ncnn.Net()
    network.opt.num_threads = THREADS
    network.opt.use_fp16_packed = network.opt.use_fp16_storage = network.opt.use_fp16_arithmetic = False
    network.opt.use_bf16_storage = False
    if network.load_param(str(folder / "model.ncnn.param")) or network.load_model(str(folder / "model.ncnn.bin")):
        raise ValueError("ncnn does not load what pnnx wrote")

    def answer(pixels: np.ndarray) -> np.ndarray:
        with network.create_extractor() as extractor:
            extractor.input("in0", ncnn.Mat(np.ascontiguousarray(pixels[0])).clone())
            code, out = extractor.extract("out0")
        if code:
            raise ValueError(f"ncnn ends with {code}")
        return np.array(out)[None]

    return answer
