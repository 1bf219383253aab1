"""Which products suffer most from 8 bits: each alone is quantised, and the model's answers are compared with its own.

Enters a `Quantiser` and an `Evaluator` on unlabelled images; leaves one loss a product. Cost: one quantisation of one
weight and one run over the images for each product.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import onnx

from corp_onnx.precision.products import Product
from corp_onnx.progress import Count
from corp_onnx.search.evaluator import Evaluator


class Quantiser(Protocol):
    """What makes integers of the products at some node positions."""

    def quantise(self, positions: Iterable[int], *, stays: bool = False) -> onnx.ModelProto:
        """The model with these products as integers.

        Args:
            stays: whether float weights that lie outside stay where they are, beside the model.
        """
        ...


def measure_products(
    quantiser: Quantiser,
    evaluator: Evaluator,
    products: Sequence[Product],
    progress: Count | None = None,
) -> dict[int, float]:
    """KL in nats (squared relative error where the output is no logits) by node position, with that product in int8."""
    losses: dict[int, float] = {}
    for product in products:
        position = product.node.position
        losses[position] = evaluator.evaluate(quantiser.quantise([position], stays=True)).loss
        if progress is not None:
            progress(1)
    return losses
