"""The exported graphs of tests/fixtures, seeded changes to them, and an oracle that never resizes anything.

The oracle of a pruned graph is the dense graph with other numbers in it: a removed hidden channel has zeros in the
second product; queries and keys mapped by A and B give the logits of q -> B'A q with untouched keys; values mapped by V
and an output projection U give those of the dense values under U V. No operator, shape or scale of it changes, so what
is wrong in a rewrite can not be wrong here in the same way.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from corp_onnx.blocks import Attention, Blocks, Linear, Mlp, QkPair, SiteKey, VoPair, find_blocks
from corp_onnx.graph import Graph, Model, load_model
from corp_onnx.graph.slots import Slot
from corp_onnx.graph.write import write_model
from corp_onnx.images.arrays import ArraySet
from corp_onnx.run.noise import random_feeds
from corp_onnx.run.probe import probe_graph
from corp_onnx.run.sessions import open_session
from corp_onnx.units import AttentionChange, MlpChange, apply_changes, list_units

FIXTURES = Path(__file__).parent.parent / "fixtures"
ENTRIES: dict[str, dict[str, Any]] = {
    e["name"]: e for e in json.loads((FIXTURES / "manifest.json").read_text(encoding="utf-8"))["fixtures"]
}
ROUNDING = {"float32": 2e-5, "float64": 1e-6, "float16": 2e-2, "bfloat16": 2e-2}
"""Accepted difference relative to the largest output: what reordering sums of that precision costs in two blocks."""

Changes = dict[SiteKey, MlpChange | AttentionChange]


def is_quantised(name: str) -> bool:
    return ENTRIES[name]["options"].get("dtype") == "int8"


def runs_here(name: str) -> bool:
    """Whether the graph is float and ONNX Runtime can run it on a CPU; bfloat16 runs as its float32 twin."""
    return not is_quantised(name) and (ENTRIES[name]["runs"] or ENTRIES[name]["options"].get("dtype") == "bfloat16")


def prunable_names() -> list[str]:
    """The graphs in which something can be pruned."""
    expect = {n: e["expect"] for n, e in ENTRIES.items() if runs_here(n)}
    return [n for n, e in expect.items() if any(e[k] is not False for k in ("qk", "vo", "mlp_prunable"))]


def fixture_path(name: str) -> Path:
    return FIXTURES / ENTRIES[name]["file"]


@cache
def probed(name: str) -> tuple[Graph, Blocks]:
    graph = probe_graph(load_model(fixture_path(name)))
    return graph, find_blocks(graph)


def prunable_sites(blocks: Blocks, kind: str) -> tuple[Any, ...]:
    """The sites whose unit of a kind can change width."""
    return tuple(unit.site for unit in list_units(blocks, (kind,)))


def find_in(proto: onnx.ModelProto, folder: Path) -> tuple[Graph, Blocks]:
    """A probed graph of a model made in a test, and what is found in it."""
    path = folder / "model.onnx"
    onnx.save(proto, path)
    graph = probe_graph(load_model(path))
    return graph, find_blocks(graph)


def feeds_of(graph: Graph, n_images: int = 3) -> dict[str, np.ndarray]:
    return random_feeds(graph.model, n_images)


def images_of(graph: Graph, n_images: int, seed: int = 0) -> ArraySet:
    """Samples for every input of a model, all different."""
    rng = np.random.default_rng(seed)
    feeds = feeds_of(graph, n_images)
    arrays: dict[str, np.ndarray] = {}
    for name, array in feeds.items():
        shape = (n_images, *array.shape[1:])
        is_ids = array.dtype.kind in "iu"
        arrays[name] = rng.integers(0, 2, shape) if is_ids else rng.standard_normal(shape).astype(np.float32)
        if is_ids and name == "attention_mask":
            arrays[name] = np.ones(shape, np.int64)
    return ArraySet(Path("made up"), arrays, np.arange(n_images))


def run(path: Path | Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return [o.astype(np.float64) for o in open_session(path, threads=1).run(None, feeds)]


def save(proto: onnx.ModelProto, folder: Path, name: str, graph: Graph) -> Path:
    path = folder / f"{name}.onnx"
    write_model(proto, path, graph.model.folder)
    return path


def difference(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Largest difference over all outputs, each relative to its largest value."""
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        worst = max(worst, float(np.abs(a - b).max() / np.abs(b).max())) if b.size else worst
    return worst


def random_width(rng: np.random.Generator, width: int) -> int:
    """Any width from 1 to the whole."""
    return int(rng.integers(1, width + 1))


def change_mlp_randomly(graph: Graph, unit: Mlp, rng: np.random.Generator) -> MlpChange:
    """Channels kept in any order, and a second product that is not the old one."""
    kept_idx = rng.permutation(unit.d_hidden)[: random_width(rng, unit.d_hidden)]
    weight = unit.down.read_weight(graph).astype(np.float64)[:, kept_idx]
    bias = unit.down.read_bias(graph)
    start = np.zeros(unit.down.d_out) if bias is None else bias.astype(np.float64)
    return MlpChange(
        unit,
        kept_idx,
        weight * rng.uniform(0.5, 1.5, weight.shape),
        start + 0.1 * rng.standard_normal(unit.down.d_out),
    )


def change_attention_randomly(
    graph: Graph, unit: Attention, rng: np.random.Generator, *, qk: bool, vo: bool
) -> AttentionChange:
    """Random maps of every head that keep the size of what they map."""
    q_map = k_map = v_map = out_weight = out_bias = None
    if qk and isinstance(unit.qk, QkPair):
        width = random_width(rng, unit.d_qk)
        q_map, k_map = (_random_map(rng, unit.n_heads, width, unit.d_qk) for _ in "qk")
    if vo and isinstance(unit.vo, VoPair):
        width = random_width(rng, unit.d_v)
        v_map = _random_map(rng, unit.n_heads, width, unit.d_v)
        linear = unit.vo.out.linear
        out_weight = 0.3 * rng.standard_normal((linear.d_out, unit.n_heads * width))
        bias = linear.read_bias(graph)
        out_bias = None if bias is None else bias.astype(np.float64) + 0.1 * rng.standard_normal(linear.d_out)
    return AttentionChange(unit, q_map, k_map, v_map, out_weight, out_bias)


def _random_map(rng: np.random.Generator, n_heads: int, width: int, d_head: int) -> np.ndarray:
    return rng.standard_normal((n_heads, width, d_head)) / np.sqrt(d_head)


def random_changes(
    graph: Graph, blocks: Blocks, seed: int, *, mlp: bool = True, qk: bool = True, vo: bool = True
) -> Changes:
    """A seeded change of every unit of the wanted kinds, of another width in every block."""
    rng = np.random.default_rng(seed)
    changes: Changes = {}
    if mlp:
        changes |= {u.key: change_mlp_randomly(graph, u, rng) for u in blocks.mlps}
    for unit in blocks.attentions:
        if (qk and isinstance(unit.qk, QkPair)) or (vo and isinstance(unit.vo, VoPair)):
            changes[unit.key] = change_attention_randomly(graph, unit, rng, qk=qk, vo=vo)
    return changes


class DenseOracle:
    """The dense graph with other numbers, written with nothing but the onnx package."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.proto = onnx.ModelProto()
        self.proto.CopyFrom(graph.model.proto)
        self.weights: dict[Slot, tuple[Linear, np.ndarray]] = {}
        self.biases: dict[Slot, np.ndarray] = {}
        self.late: list[tuple[int, onnx.NodeProto]] = []

    def weight(self, linear: Linear) -> np.ndarray:
        """[d_out, d_in] in float64, to be changed in place."""
        if linear.weight not in self.weights:
            self.weights[linear.weight] = (linear, linear.read_weight(self.graph).astype(np.float64))
        return self.weights[linear.weight][1]

    def bias(self, linear: Linear) -> np.ndarray | None:
        """The projection's part of a stored bias, to be changed in place."""
        if linear.bias is None:
            return None
        if linear.bias not in self.biases:
            stored = self.graph.constant(linear.bias.name)
            assert stored is not None
            self.biases[linear.bias] = stored.astype(np.float64).reshape(-1).copy()
        return self.biases[linear.bias][linear.bias_offset : linear.bias_offset + linear.d_out]

    def change(self, blocks: Blocks, changes: Changes) -> onnx.ModelProto:
        for unit in blocks.mlps:
            if unit.key in changes:
                self._mlp(unit, changes[unit.key])
        for unit in blocks.attentions:
            if unit.key in changes:
                self._attention(unit, changes[unit.key])
        return self._finish()

    def _mlp(self, unit: Mlp, change: Any) -> None:
        weight = self.weight(unit.down)
        weight[:] = 0
        weight[:, change.kept_idx] = change.weight
        self._set_bias(unit.down, change.bias)

    def _set_bias(self, linear: Linear, values: np.ndarray) -> None:
        bias = self.bias(linear)
        if bias is not None:
            bias[:] = values
            return
        node = self.proto.graph.node[linear.node.position]
        dtype = linear.read_weight(self.graph).dtype
        inner, name = f"oracle/{node.output[0]}", f"oracle/{node.output[0]}/bias"
        self.proto.graph.initializer.append(numpy_helper.from_array(values.astype(dtype), name))
        self.late.append((linear.node.position, helper.make_node("Add", [inner, name], [node.output[0]])))
        node.output[0] = inner

    def _attention(self, unit: Attention, change: Any) -> None:
        if change.q_map is not None:
            query = unit.operands["q"]
            joint = change.k_map.swapaxes(1, 2) @ change.q_map  # [H, d, d]
            weight, bias = self.weight(query.linear), self.bias(query.linear)
            for head, idx in enumerate(query.channel_idx):
                weight[idx] = joint[head] @ weight[idx]
                if bias is not None:
                    bias[idx] = joint[head] @ bias[idx]
            if query.late_bias is not None:
                heads = query.read_late_bias(self.graph).astype(np.float64)
                self.biases[query.late_bias] = np.einsum("hrd,hd->hr", joint, heads).reshape(-1)
        if change.v_map is not None:
            assert unit.out is not None
            weight = self.weight(unit.out.linear)
            parts = np.split(change.out_weight, unit.n_heads, axis=1)
            for head, idx in enumerate(unit.out.channel_idx):
                weight[:, idx] = parts[head] @ change.v_map[head]
            if change.out_bias is not None:
                self._set_bias(unit.out.linear, change.out_bias)

    def _finish(self) -> onnx.ModelProto:
        for slot, (linear, weight) in self.weights.items():
            self._store(slot, weight if linear.transposed else weight.T)
        for slot, bias in self.biases.items():
            self._store(slot, bias)
        for position, node in sorted(self.late, key=lambda p: -p[0]):
            self.proto.graph.node.insert(position + 1, node)
        return self.proto

    def _store(self, slot: Slot, values: np.ndarray) -> None:
        old = self.graph.constant(slot.name)
        assert old is not None
        name = f"oracle/{slot.node.position}/{slot.idx}"
        shaped = np.ascontiguousarray(values.astype(old.dtype).reshape(old.shape))
        self.proto.graph.initializer.append(numpy_helper.from_array(shaped, name))
        self.proto.graph.node[slot.node.position].input[slot.idx] = name


def prune_both(graph: Graph, blocks: Blocks, changes: Changes, folder: Path) -> tuple[Path, Path]:
    """(the pruned file, the oracle's file)."""
    pruned = save(apply_changes(graph, changes), folder, "pruned", graph)
    oracle = save(DenseOracle(graph).change(blocks, changes), folder, "oracle", graph)
    return pruned, oracle
