"""The layers of a finished engine, out of the text that TensorRT writes of them.

Enters what an engine's inspector writes (a line each) or, where no inspector runs because there is no GPU, the same
lines from the builder's own log; leaves `EngineLayer`s in the order of execution. One line, shortened:

    Name: _gemm_mha_v2_myl0_10, LayerType: kgen, Inputs: [ { Name: x, Dimensions: [-1,197,64], ..., Datatype: Half,
    ...}, {...}], Constants: [...], Outputs: [...], TacticName: _gemm_mha_v2_0x04, StreamId: 0, Metadata: [ONNX Layer:
    /attn/MatMul_1][ONNX Layer: /attn/Softmax]

What a kernel does is told by its name only, which TensorRT makes of the operators in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MARKS = ("Layers:", "Engine Layer Information:")
"""How the list begins, in the log and from an inspector."""

START, ORIGIN = "Name: ", "[ONNX Layer: "
SEPARATORS = "\x1e\x1f"
"""Control characters between the origins of a layer."""

NO_KERNELS = frozenset({"shape_call", "signal", "wait"})
"""Types of layers that compute no tensor on the GPU."""

PRODUCT_KINDS = frozenset({"gemm", "correlation", "runtime_fusion"})
"""Types of layers that multiply matrices or convolve; the last with what stands behind the product."""

FUSED, PADDING = "mha", "ReplConc"
"""Parts of the names of fused attention and of a copy into a padded tensor."""


@dataclass(frozen=True, slots=True)
class EngineLayer:
    """One layer of an engine.

    Attributes:
        name: TensorRT's.
        kind: its type, as `kgen` or `gemm`.
        tactic: the kernel that was chosen.
        types: element types of what it reads and gives, as `Half`; constants not counted.
        origins: names of the ONNX nodes that it computes.
    """

    name: str
    kind: str
    tactic: str
    types: tuple[str, ...]
    origins: tuple[str, ...]

    @property
    def is_kernel(self) -> bool:
        """Whether something runs on the GPU for it."""
        return self.kind not in NO_KERNELS

    @property
    def is_fused_attention(self) -> bool:
        """Whether it is q k', softmax and the product with v in one."""
        return FUSED in self.name or FUSED in self.tactic

    @property
    def is_padding(self) -> bool:
        """Whether it copies into a tensor that is padded with something."""
        return PADDING in self.name

    @property
    def is_product(self) -> bool:
        """Whether it multiplies matrices, attention not counted."""
        return self.kind in PRODUCT_KINDS and not self.is_fused_attention


def is_layer_list(text: str) -> bool:
    """Whether a message of the builder is its list of layers."""
    return text.startswith(MARKS)


def parse_layers(text: str) -> tuple[EngineLayer, ...]:
    """The layers of an engine; nothing where the text holds no list."""
    return tuple(_read_layers(text))


def _read_layers(text: str) -> Iterator[EngineLayer]:
    lines = iter(text.split("\n"))  # splitlines would part a line at a separator
    for line in lines:
        if line.startswith(MARKS):
            break
    for line in lines:
        if line.startswith(START):
            yield _read_layer(line)
        elif not line.strip() or line.endswith(":"):  # "I/O Tensors:", "Bindings:"
            return


def _read_layer(line: str) -> EngineLayer:
    name, _, rest = line.removeprefix(START).partition(", LayerType: ")
    kind, _, rest = rest.partition(", ")
    facts, _, metadata = rest.partition("Metadata: ")
    tactic = facts.rpartition("TacticName: ")[2].partition(", ")[0] if "TacticName: " in facts else ""
    constants = _section(facts, "Constants: [")
    types = facts.replace(constants, "").split("Datatype: ")[1:]
    origins = [part.strip(SEPARATORS).removesuffix("]") for part in metadata.rstrip().split(ORIGIN)[1:]]
    return EngineLayer(
        name, kind, tactic, tuple(dict.fromkeys(t.partition(",")[0].strip(" }]") for t in types)), tuple(origins)
    )


def _section(facts: str, start: str) -> str:
    """A list and all that is in it, from its name to the bracket that closes it."""
    begin = facts.find(start)
    if begin < 0:
        return ""
    depth = 0
    for idx in range(begin + len(start) - 1, len(facts)):
        depth += {"[": 1, "]": -1}.get(facts[idx], 0)
        if depth == 0:
            return facts[begin : idx + 1]
    return facts[begin:]
