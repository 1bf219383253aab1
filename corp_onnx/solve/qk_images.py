"""Query and key maps refined on single images: the objective that pooling the Grams only approximates.

Enters: a `QkSolution`, and the Grams of some images one by one, queries raw and keys centred over the tokens of their
image (`LogitSum(..., n_image_grams=...)`). Leaves: a `QkSolution` of the same width whose maps U' and V' come closer to
the minimum over both of

    sum over images b of |Q_b (I - U V') K_b'|^2 = sum_b <(I - U V')' G_Q,b (I - U V'), G_K,b>

It is quadratic in each factor with the other held, so the two are improved in turn. A step is a few iterations of
conjugate gradients from where the factor stands, preconditioned by the pooled Grams (for which the system is solved in
closed form): every iteration lowers the objective, and no system of (d r)^2 numbers is ever built.

Memory: 8 d^2 bytes an image and head for the float32 Grams, 0.4 MB an image for 12 heads of 64, 25 MB for 64 images of
one block. Not part of the paper.
"""

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false
from __future__ import annotations

import numpy as np
from jaxtyping import Float

from corp_onnx.errors import OptionError
from corp_onnx.solve.error import relate_error
from corp_onnx.solve.qk import QkSolution

N_SWEEPS = 4
N_ITERATIONS = 4
"""A sweep improves queries, then keys. On made-up Grams (64 images, rank 32 of 64) four sweeps of four iterations bring
99 % of what 32 sweeps of 32 bring, in a hundredth of the time."""


def refine_logits(
    solution: QkSolution,
    image_q_gram: Float[np.ndarray, "images h d d"],
    image_k_gram: Float[np.ndarray, "images h d d"],
    n_sweeps: int = N_SWEEPS,
) -> QkSolution:
    """The refined maps; about 12 n_sweeps * images * h * d r (d + r) multiply-adds. The objective never rises.

    `condition_number` is that of the start. Maps of full width are returned as they are.

    Raises:
        OptionError: no images, or `n_sweeps` is negative.
    """
    n_heads, width, d_head = solution.q_map.shape
    if len(image_q_gram) == 0 or n_sweeps < 0:
        raise OptionError(f"expected images and 0 or more sweeps, found {len(image_q_gram)} images, {n_sweeps} sweeps")
    if width == d_head:
        return solution
    q_map, k_map = solution.q_map.copy(), solution.k_map.copy()
    for h in range(n_heads):
        q_gram, k_gram = image_q_gram[:, h].astype(np.float64), image_k_gram[:, h].astype(np.float64)
        left, right = q_map[h].T, k_map[h].T
        for _ in range(n_sweeps):
            left = _improve(left, right, q_gram, k_gram)
            right = _improve(right, left, k_gram, q_gram)
        q_map[h], k_map[h] = _balance(left, right, q_gram.sum(axis=0), k_gram.sum(axis=0))
    return QkSolution(q_map, k_map, None, solution.condition_number)


def measure_image_error(
    solution: QkSolution,
    image_q_gram: Float[np.ndarray, "images h d d"],
    image_k_gram: Float[np.ndarray, "images h d d"],
) -> float:
    """The per-image objective, summed over images and heads, relative to dropping every dimension."""
    difference = np.eye(image_q_gram.shape[-1]) - solution.q_map.transpose(0, 2, 1) @ solution.k_map  # [h, d, d]
    energy = float(np.sum(image_q_gram * image_k_gram, dtype=np.float64))
    error = float(np.sum((image_q_gram @ difference @ image_k_gram) * difference))
    return relate_error(error, energy)


def _improve(
    factor: Float[np.ndarray, "d r"],
    other: Float[np.ndarray, "d r"],
    own_gram: Float[np.ndarray, "images d d"],
    other_gram: Float[np.ndarray, "images d d"],
) -> Float[np.ndarray, "d r"]:
    """`factor` after conjugate gradients on sum_b G_b X (V' H_b V) = sum_b G_b H_b V, V the other factor."""
    n_images, d_head, _ = own_gram.shape
    projected = other_gram @ other  # H_b V, [images, d, r]
    small = other.T @ projected  # V' H_b V, [images, r, r]
    stacked = small.reshape(-1, other.shape[1])  # [images * r, r]
    flat_gram = own_gram.reshape(-1, d_head)

    def apply(x: Float[np.ndarray, "d r"]) -> Float[np.ndarray, "d r"]:
        by_image = (flat_gram @ x).reshape(n_images, d_head, -1).transpose(1, 0, 2)  # [d, images, r]
        return by_image.reshape(d_head, -1) @ stacked

    own_root = _pseudo_inverse(own_gram.sum(axis=0))
    small_root = _pseudo_inverse(small.sum(axis=0))
    residual = np.tensordot(own_gram, projected, axes=((0, 2), (0, 1))) - apply(factor)
    direction = np.zeros_like(factor)
    previous = 0.0
    for _ in range(N_ITERATIONS):
        scaled = own_root @ residual @ small_root * n_images
        current = float(np.vdot(residual, scaled))
        if current <= 0:  # at the minimum, but for rounding
            break
        direction = scaled + (current / previous) * direction if previous > 0 else scaled
        image = apply(direction)
        curvature = float(np.vdot(direction, image))
        if curvature <= current * np.finfo(np.float64).eps:
            break
        factor = factor + (current / curvature) * direction
        residual = residual - (current / curvature) * image
        previous = current
    return factor


def _pseudo_inverse(gram: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    values, vectors = np.linalg.eigh(gram)
    is_live = values > max(float(values[-1]), 0.0) * len(gram) * np.finfo(np.float32).eps
    inverse = np.divide(1.0, values, out=np.zeros_like(values), where=is_live)
    return (vectors * inverse) @ vectors.T


def _balance(
    left: Float[np.ndarray, "d r"],
    right: Float[np.ndarray, "d r"],
    q_gram: Float[np.ndarray, "d d"],
    k_gram: Float[np.ndarray, "d d"],
) -> tuple[Float[np.ndarray, "r d"], Float[np.ndarray, "r d"]]:
    """The same U V' with both sides of equal size, dimension by dimension: alternating steps let one side outgrow."""
    q_energy = np.einsum("dr,de,er->r", left, q_gram, left)
    k_energy = np.einsum("dr,de,er->r", right, k_gram, right)
    is_live = (q_energy > 0) & (k_energy > 0)
    ratio = np.divide(k_energy, q_energy, out=np.ones_like(q_energy), where=is_live)
    scale = np.power(ratio, 0.25)
    return (left * scale).T, (right / scale).T
