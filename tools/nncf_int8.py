"""A model in 8 bits by NNCF, the rival of `convert --int8 static`: runs in NNCF's own environment, without corp_onnx.

    python -m venv .venv-nncf && .venv-nncf/bin/pip install nncf openvino onnx onnxruntime
    .venv-nncf/bin/python tools/nncf_int8.py model.onnx pixels.npy model.nncf.onnx

`pixels.npy` holds images without labels as the model takes them, [n, channels, height, width]. NNCF's own settings for
transformers, and its own defaults for the rest, on as many images as there are.
"""

from __future__ import annotations

import logging
import sys

import numpy as np

logging.disable(logging.INFO)


def main() -> None:
    """Quantise the first argument with the second into the third, and print NNCF's version."""
    sys.modules["openvino_telemetry"] = None  # it would look for a server
    import nncf
    import onnx

    source, pixels, output = sys.argv[1:]
    model = onnx.load(source)
    name, images = model.graph.input[0].name, np.load(pixels, mmap_mode="r")
    data = nncf.Dataset(range(len(images)), lambda i: {name: np.asarray(images[i : i + 1])})
    small = nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(images))
    onnx.save(small, output)
    print(nncf.__version__)


if __name__ == "__main__":
    main()
