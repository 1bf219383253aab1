"""Attention that is one operator of the graph, on PyTorch tensors: of opset 23, and two of com.microsoft.

Enters a node with its inputs; leaves what it attends, softmax(scale * Q K' + mask) V. Masks that no Vision Transformer
has (past keys, soft caps) are refused by name. Formulas: onnx.ai/onnx/operators, ContribOperators.md of ONNX Runtime.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from corp_onnx.errors import ModelError
from corp_onnx.gradients.tensors import Torch
from corp_onnx.graph import Node


def apply_attention(t: Torch, node: Node, x: list[Any]) -> Any:
    """The operator of opset 23, on [B, H, N, d] or [B, N, H*d]."""
    q, k, v = (t.tensor(value) for value in x[:3])
    _refuse(node, x[4:], "past keys and values")
    if node.attrs.get("softcap"):
        raise _refusal(node, "a soft cap")
    folded = q.ndim == 3
    if folded:
        q = _unfold(q, node.attrs["q_num_heads"])
        k, v = (_unfold(value, node.attrs["kv_num_heads"]) for value in (k, v))
    if (n_groups := q.shape[1] // k.shape[1]) > 1:
        k, v = (value.repeat_interleave(n_groups, dim=1) for value in (k, v))
    mask = x[3] if len(x) > 3 else None
    found = _attend(t, node, q, k, v, mask, causal=bool(node.attrs.get("is_causal")))
    return _fold(found) if folded else found


def apply_multi_head(t: Torch, node: Node, x: list[Any]) -> Any:
    """com.microsoft.MultiHeadAttention, with packed or separate queries, keys and values."""
    n_heads = node.attrs["num_heads"]
    inputs = [*x, *[None] * (8 - len(x))]
    _refuse(node, inputs[6:], "past keys")
    q, k, v = (t.tensor(value) if value is not None else None for value in inputs[:3])
    q, k, v = _separate(t, q, k, v, n_heads, inputs[3])
    mask = inputs[5] if inputs[4] is None else _key_mask(node, t.array(inputs[4]), k.shape[0], k.shape[2])
    return _fold(_attend(t, node, q, k, v, mask, causal=bool(node.attrs.get("unidirectional"))))


def _separate(t: Torch, q: Any, k: Any, v: Any, n_heads: int, bias: Any) -> tuple[Any, Any, Any]:
    """Queries, keys and values as [B, H, N, d] each."""
    if q.ndim == 5:  # packed [B, N, H, 3, d]
        return tuple(q.permute(3, 0, 2, 1, 4))
    if k.ndim == 5:  # packed keys and values [B, M, H, 2, d]
        return (_unfold(q, n_heads), *k.permute(3, 0, 2, 1, 4))
    if bias is not None:
        width = q.shape[-1]
        b_q, b_k, b_v = t.tensor(bias).split([width, width, len(bias) - 2 * width])
        q = q + b_q
        k, v = (k + b_k, v + b_v) if k.ndim == 3 else (k, v)
    q, k, v = (_unfold(value, n_heads) if value.ndim == 3 else value for value in (q, k, v))
    return q, k, v


def apply_packed(t: Torch, node: Node, x: list[Any]) -> Any:
    """com.microsoft.Attention, which holds the three projections."""
    inputs = [*x, *[None] * (7 - len(x))]
    _refuse(node, [inputs[4], inputs[6]], "past keys")
    projected = t.tensor(x[0]) @ t.tensor(x[1])
    if inputs[2] is not None:
        projected = projected + t.tensor(inputs[2])
    sizes = node.attrs.get("qkv_hidden_sizes") or [projected.shape[-1] // 3] * 3
    q, k, v = (_unfold(value, node.attrs["num_heads"]) for value in projected.split(list(sizes), dim=-1))
    mask = inputs[5]
    if inputs[3] is not None:
        mask = _key_mask(node, t.array(inputs[3]), k.shape[0], k.shape[2])
    return _fold(_attend(t, node, q, k, v, mask, causal=bool(node.attrs.get("unidirectional"))))


def _key_mask(node: Node, mask: np.ndarray, n_batch: int, n_keys: int) -> np.ndarray:
    """Which keys are seen, [B, 1, 1, N], of a 0/1 mask or of lengths."""
    if mask.shape == (n_batch, n_keys):
        return mask.astype(bool)[:, None, None, :]
    if mask.shape == (n_batch,):
        return (np.arange(n_keys) < mask[:, None])[:, None, None, :]
    raise _refusal(node, f"a mask of shape {mask.shape}")


def _unfold(value: Any, n_heads: int) -> Any:
    return value.unflatten(-1, (n_heads, -1)).transpose(1, 2)  # [B, H, N, d]


def _fold(value: Any) -> Any:
    return value.transpose(1, 2).flatten(2)  # [B, N, H*d]


def _attend(t: Torch, node: Node, q: Any, k: Any, v: Any, mask: Any, *, causal: bool) -> Any:
    scale = node.attrs.get("scale") or q.shape[-1] ** -0.5
    logits = scale * (q @ k.transpose(-1, -2))
    if causal:
        logits = logits.masked_fill(t.torch.ones(logits.shape[-2:]).triu(1).bool(), float("-inf"))
    if mask is not None:
        mask = t.tensor(mask)
        hidden = mask.dtype == t.torch.bool
        logits = logits.masked_fill(~mask, float("-inf")) if hidden else logits + mask
    return logits.softmax(-1) @ v


def _refuse(node: Node, values: list[Any], what: str) -> None:
    if any(value is not None for value in values):
        raise _refusal(node, what)


def _refusal(node: Node, what: str) -> ModelError:
    return ModelError(f"{node!r}: no gradient is written for attention with {what}; use --rank obs, which needs none.")
