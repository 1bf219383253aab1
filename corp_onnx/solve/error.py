"""How far a solution moves the output of a linear layer, exactly, from moments alone.

Enters: the dense layer, what stands for it now, and moments of the input: of the calibration images, or of held-back
ones, which tell the truth. Leaves: E|y - y'|^2 / E|y - E y|^2, summed over outputs; 0 is identity, 1 is as bad as
answering with the mean, and a layer that was not compensated can exceed 1.
"""

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false
from __future__ import annotations

import numpy as np
from jaxtyping import Float

from corp_onnx.moments.values import ChannelMoments


def measure_layer_error(
    weight: Float[np.ndarray, "d_out n"],
    weight_difference: Float[np.ndarray, "d_out n"],
    bias_difference: Float[np.ndarray, "d_out"],
    moments: ChannelMoments,
) -> float:
    """The error of y' = (W - D) x + b - d against y = W x + b, D and d the differences; 2 n^2 d_out multiply-adds."""
    weight = weight.astype(np.float64)
    covariance = moments.covariance
    offset = weight_difference @ moments.mean + bias_difference
    error = float(np.vdot(weight_difference @ covariance, weight_difference) + offset @ offset)
    return relate_error(error, float(np.vdot(weight @ covariance, weight)))


def relate_error(error: float, energy: float) -> float:
    """error / energy; a layer without energy is either met (0) or not (inf), and rounding below zero is zero."""
    error = max(error, 0.0)
    if energy > 0:
        return error / energy
    return float("inf") if error > 0 else 0.0
