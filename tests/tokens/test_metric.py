"""Metrics of tokens against their definitions, written out with NumPy on the model's own attention weights."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import images_of, probed

from corp_onnx.run.tapped import open_tapped
from corp_onnx.tokens import metric as module
from corp_onnx.tokens.metric import learn_metrics
from corp_onnx.tokens.sites import find_merge_sites

CLASS = "timm_vit_ts17_unfused"
POOLED = "hf_siglip_ts17_eager"


def softmaxes(graph, images):
    """The attention weights of every block, [images, heads, tokens, tokens], as the graph computes them."""
    nodes = [n for n in graph.nodes if n.op == "Softmax"]
    arrays = [a for a, _ in open_tapped(graph.model, [n.output for n in nodes]).stream(images, 4)]
    return [np.concatenate([a[n.output] for a in arrays]) for n in nodes]


@pytest.fixture
def learnt(monkeypatch):
    monkeypatch.setattr(module, "N_DIRECTIONS", 4)
    graph, blocks = probed(CLASS)
    images = images_of(graph, 12)
    sites = find_merge_sites(graph, blocks)
    return graph, blocks, images, sites, learn_metrics(graph, blocks, sites, images, "learnt", batch_size=5)


def test_directions_are_the_leading_ones_of_what_the_block_reads(learnt) -> None:
    graph, _, images, sites, metrics = learnt
    for site in sites.sites:
        arrays = [a for a, _ in open_tapped(graph.model, [site.source]).stream(images, 12)]
        x = np.concatenate([a[site.source] for a in arrays])[:, 1:].reshape(-1, graph.dims(site.source)[2])
        variances = np.linalg.eigvalsh(np.cov(x.T.astype(np.float64), ddof=0))[::-1]
        found = np.var(x @ metrics[site.block].directions, axis=0)
        assert found == pytest.approx(variances[:4], rel=1e-3)


def test_importance_is_what_later_blocks_read(learnt) -> None:
    """Regression on log attention of the class token, of the blocks behind; in the last, its own."""
    graph, _, images, sites, metrics = learnt
    weights = softmaxes(graph, images)
    for site in sites.sites:
        later = weights[site.block + 1 :] or weights[-1:]
        t = np.mean([np.log(w[:, :, 0, 1:].mean(axis=1) + 1e-9) for w in later], axis=0).reshape(-1)
        arrays = [a for a, _ in open_tapped(graph.model, [site.source]).stream(images, 12)]
        x = np.concatenate([a[site.source] for a in arrays])[:, 1:].reshape(len(t), -1).astype(np.float64)
        c = np.cov(x.T, ddof=0)
        lam = 1e-3 * np.trace(c) / len(c)
        u = np.linalg.solve(c + lam * np.eye(len(c)), (x - x.mean(axis=0)).T @ (t - t.mean()) / len(t))
        assert metrics[site.block].importance == pytest.approx(u, rel=1e-3, abs=1e-5)


def test_without_a_class_token_every_token_reads() -> None:
    graph, blocks = probed(POOLED)
    sites = find_merge_sites(graph, blocks)
    n_special = sites.n_special
    images = images_of(graph, 6)
    found = learn_metrics(graph, blocks, sites, images, "learnt")
    assert all(m.importance is not None and np.isfinite(m.importance).all() for m in found.values())
    assert n_special in (0, 1)


def test_keys_are_their_mean_over_heads() -> None:
    graph, blocks = probed(CLASS)
    sites = find_merge_sites(graph, blocks)
    metrics = learn_metrics(graph, blocks, sites, images_of(graph, 2), "keys")
    site, attention = sites.sites[0], blocks.attentions[0]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, graph.dims(site.source)[2]))
    k = attention.operands["k"]
    keys = x @ k.linear.read_weight(graph).T + k.linear.read_bias(graph)
    expected = keys[:, k.channel_idx].mean(axis=1)
    found = metrics[site.block]
    assert found.importance is None
    assert x @ found.directions + found.offset == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_rotation_in_front_of_the_product_leaves_all_tokens_alike(monkeypatch) -> None:
    graph, blocks = probed(CLASS)
    sites = find_merge_sites(graph, blocks)
    monkeypatch.setattr(module, "_plain_pair", lambda _: None)
    found = learn_metrics(graph, blocks, sites, images_of(graph, 4), "learnt")
    assert all(m.importance is None for m in found.values())
