"""What a runtime wants of a pruned model, as values: `prune --target NAME`. The evidence is in docs/targets.md.

`generic` is right everywhere. A target only narrows what the search may choose, or writes the same function in other
operators, so every file still runs in every runtime.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TargetName = Literal["generic", "onnxruntime-cpu", "openvino", "tensorrt", "web"]


@dataclass(frozen=True, slots=True)
class Target:
    """What one runtime wants.

    Attributes:
        equal_heads: queries, keys and values of a block have one width: its fused attention takes no other.
        min_head: the least width of a head that its fused attention takes; 1 is no such limit.
        folds_scale: the scale of the logits lies in the weights of the queries, and its operators are gone.
    """

    equal_heads: bool = False
    min_head: int = 1
    folds_scale: bool = True


TARGETS: dict[TargetName, Target] = {
    "generic": Target(folds_scale=False),
    "onnxruntime-cpu": Target(),
    "openvino": Target(),
    "tensorrt": Target(equal_heads=True, min_head=16),
    "web": Target(),
}
"""By name."""
