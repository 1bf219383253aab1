"""Gradients of the entropy: the interpreter against ONNX Runtime, its gradients against finite differences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from samples import COMPUTED_SCALE, FIXED, FIXTURES, OPERATOR, TEXT, fixture_path, weights_of, write_photos

from corp_onnx.blocks import find_blocks
from corp_onnx.calibrate.data import HELD_OUT_FRACTION
from corp_onnx.errors import ModelError, OptionError
from corp_onnx.gradients import EntropyGradient, collect_taylor, find_logits, find_stretch
from corp_onnx.gradients.operators import RULES, WITHOUT_GRADIENT, apply_operator
from corp_onnx.gradients.tensors import Torch
from corp_onnx.graph import Graph, Node, load_model
from corp_onnx.graph.operators import NONLINEAR, OPERATORS, TABLE, Operator, Trait
from corp_onnx.images import open_images, split_holdout
from corp_onnx.images.recipe import Recipe
from corp_onnx.metrics.logits import log_softmax
from corp_onnx.prune import prune_model
from corp_onnx.run.noise import random_feeds
from corp_onnx.run.probe import probe_graph
from corp_onnx.run.segments import open_segment
from corp_onnx.run.tapped import open_tapped
from corp_onnx.settings import BEST, PAPER, Fractions, PruneSettings
from corp_onnx.units import KINDS, list_units

FEATURES = "hf_dinov2_ts17_sdpa"  # no logits
SPELLINGS = (
    COMPUTED_SCALE, OPERATOR, FIXED, TEXT, FEATURES, "hf_vit_dynamo18_eager", "hf_vit_ts17_eager_ort",
    "hf_bert_ts17_eager_ortbert", "hf_bert_ts17_eager_ortbertmha", "hf_clip_vision_ts17_eager_ortclip",
    "handmade_ms_mha_bias", "timm_swin_ts17_fused_fixed", "timm_vit_ts17_ortfast", "timm_vit_dynamo18_ortext",
    "hf_dinov3_ts17_sdpa", "timm_beit_ts17_unfused", "timm_clip_quickgelu_ts17", "timm_vit_dynamo18_unoptimized",
)  # fmt: skip


def read(path: Path) -> tuple[Graph, tuple[str, ...]]:
    graph = probe_graph(load_model(path))
    return graph, tuple(dict.fromkeys(u.hidden for u in find_blocks(graph).mlps))


def check_outputs(path: Path) -> None:
    """From the first hidden tensor on, PyTorch answers what ONNX Runtime answers, and every hidden tensor matters."""
    graph, hidden = read(path)
    gradient = EntropyGradient(graph, find_stretch(graph, hidden, graph.outputs[0]))
    tapped = open_tapped(graph.model, gradient.stretch.fed)
    arrays = tapped.run(random_feeds(graph.model, graph.n_images))
    answers = gradient.run(gradient.read(arrays))[graph.outputs[0]].detach().numpy()
    expected = arrays[graph.outputs[0]].astype(np.float32)
    tolerance = 2e-3 if graph.float_type == "float16" else 2e-6
    assert np.abs(answers - expected).max() <= tolerance * np.abs(expected).max()
    for name, product in gradient.products(arrays, graph.n_images).items():
        assert product.shape == graph.shapes[name]
        assert np.isfinite(product).all()
        assert product.any()


@pytest.mark.parametrize("name", SPELLINGS)
def test_the_interpreter_answers_what_onnx_runtime_answers(name: str) -> None:
    pytest.importorskip("torch")
    check_outputs(fixture_path(name))


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.onnx")), ids=lambda p: p.stem)
def test_every_fixture_with_an_mlp(path: Path) -> None:
    pytest.importorskip("torch")
    try:
        _, hidden = read(path)
    except ModelError as error:
        pytest.skip(str(error))
    if not hidden:
        pytest.skip("no MLP")
    check_outputs(path)


@pytest.mark.parametrize("name", [COMPUTED_SCALE, OPERATOR, "hf_vit_ts17_eager_ort"])
def test_gradients_equal_finite_differences(name: str) -> None:
    """Central differences in float64, of the first and of the last MLP."""
    torch = pytest.importorskip("torch")
    graph, hidden = read(fixture_path(name))
    rng = np.random.default_rng(0)
    for start in (hidden[0], hidden[-1]):
        gradient = EntropyGradient(graph, find_stretch(graph, [start], find_logits(graph)), precision="float64")
        arrays = open_tapped(graph.model, gradient.stretch.fed).run(random_feeds(graph.model, graph.n_images))
        fed = gradient.read(arrays)
        values = gradient.run(fed)
        (grad,) = torch.autograd.grad(gradient.entropy(values, graph.n_images), values[start])
        for _ in range(6):
            idx = tuple(int(rng.integers(n)) for n in grad.shape)
            idx = (idx[0], 0, idx[-1]) if start == hidden[-1] and len(idx) == 3 else idx  # the class token
            losses = []
            for step in (1e-5, -1e-5):
                moved = fed[start].clone()
                moved[idx] += step
                entropy = gradient.entropy(gradient.run({**fed, start: moved}), graph.n_images)
                losses.append(float(entropy.detach()))
            assert float(grad[idx]) == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-4, abs=1e-9)


def test_importance_against_onnx_runtime_alone(tmp_path: Path) -> None:
    """mean |x dL/dx| with dL/dx from central differences of ONNX Runtime's own answers, no PyTorch in the oracle."""
    pytest.importorskip("torch")
    graph, _ = read(fixture_path(OPERATOR))
    unit = list_units(find_blocks(graph), ("mlp",))[-1]
    hidden = unit.gradient_tensor
    images = open_images(write_photos(tmp_path / "photos", 3), Recipe(size=(8, 8)))
    found = collect_taylor(graph, [unit], images, batch_size=2)[str(unit.key)]
    stretch = find_stretch(graph, [hidden], graph.outputs[0])
    arrays, _ = next(open_tapped(graph.model, stretch.fed).stream(images, 8))
    segment = open_segment(graph.model, graph.types, stretch.fed, [graph.outputs[0]])
    x = arrays[hidden]

    def entropy(moved: np.ndarray) -> np.ndarray:
        log_p = log_softmax(segment.run({**arrays, hidden: moved}, {})[graph.outputs[0]].astype(np.float64))
        return -(np.exp(log_p) * log_p).sum(axis=1)

    step = 0.05
    for channel in (0, 7, 19):
        total = 0.0
        for token in range(x.shape[1]):
            change = np.zeros_like(x)
            change[:, token, channel] = step
            slope = (entropy(x + change) - entropy(x - change)) / (2 * step)
            total += float(np.abs(x[:, token, channel] * slope).sum())
        assert found[channel] == pytest.approx(total / (x.shape[0] * x.shape[1]), rel=0.02, abs=1e-7)


def test_importance_does_not_depend_on_batches(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    images = open_images(write_photos(tmp_path / "photos", 5), Recipe(size=(8, 8)))
    found = []
    for batch_size in (5, 2):
        graph, _ = read(fixture_path(OPERATOR))
        found.append(collect_taylor(graph, list_units(find_blocks(graph), KINDS), images, batch_size=batch_size))
    assert found[0].keys() == {str(site.key) for site in find_blocks(graph).mlps}  # what else there is has no channels
    for key, importance in found[0].items():
        np.testing.assert_allclose(found[1][key], importance, rtol=1e-4)


def test_filled_up_rows_of_a_fixed_batch_do_not_count() -> None:
    pytest.importorskip("torch")
    graph, hidden = read(fixture_path(TEXT))
    gradient = EntropyGradient(graph, find_stretch(graph, hidden, find_logits(graph)))
    arrays = open_tapped(graph.model, gradient.stretch.fed).run(random_feeds(graph.model, graph.n_images))
    both, first = gradient.products(arrays, 2), gradient.products(arrays, 1)
    for name in hidden:
        np.testing.assert_allclose(first[name][0], both[name][0], rtol=1e-5, atol=1e-9)
        assert not first[name][1].any()


def test_the_channels_of_least_importance_go(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    photos = write_photos(tmp_path / "photos", 6)
    graph, _ = read(fixture_path(OPERATOR))
    calibration, _ = split_holdout(open_images(photos, Recipe(size=(8, 8))), HELD_OUT_FRACTION, 0)
    importances = collect_taylor(graph, list_units(find_blocks(graph), ("mlp",)), calibration)
    for name, method in (("paper", PAPER), ("best", replace(BEST, refit=False))):
        output = tmp_path / f"{name}.onnx"
        settings = PruneSettings(replace(method, rank="taylor", widths=Fractions(0.5, 0.0)))
        result = prune_model(fixture_path(OPERATOR), photos, output, settings=settings)
        assert "rank" in [stage.stage for stage in result.stages]
        pruned = weights_of(output)
        for unit in find_blocks(graph).mlps:
            up = unit.ups[0].linear.read_weight(graph)
            kept_idx = np.sort(np.argsort(-importances[str(unit.key)])[: unit.d_hidden // 2])
            assert any(np.array_equal(w, up[kept_idx]) or np.array_equal(w, up[kept_idx].T) for w in pruned.values())


def test_a_model_without_logits_is_refused() -> None:
    graph, _ = read(fixture_path(FEATURES))
    with pytest.raises(OptionError, match=r"needs the entropy of an answer, .* \[2, 17, 20\] instead of \[images, cla"):
        find_logits(graph)


def test_an_unknown_operator_is_named() -> None:
    torch = pytest.importorskip("torch")
    proto = onnx.helper.make_node("Det", ["x"], ["y"], name="odd")
    node = Node("Det", "", "odd", ("x",), ("y",), {}, 0, proto)
    with pytest.raises(ModelError, match="Det 'odd': no gradient can be taken through the operator Det; use"):
        apply_operator(Torch(torch, torch.float32, 17), node, [torch.eye(3)])


@pytest.mark.parametrize("operator", [o for o in TABLE if o.traits & Trait.ELEMENTWISE], ids=lambda o: o.name)
def test_operator_that_an_mlp_may_hold_has_a_rule_or_is_refused_by_name(operator: Operator) -> None:
    """Nothing that blocks/ takes ends in another error; what is piecewise constant needs no gradient."""
    stand_in = SimpleNamespace(Tensor=np.ndarray)  # refused before anything is computed
    for domain in operator.domains:
        if (domain, operator.name) in RULES or operator.name in WITHOUT_GRADIENT:
            continue
        proto = onnx.helper.make_node(operator.name, ["x"], ["y"], domain=domain)
        node = Node(operator.name, domain, "", ("x",), ("y",), {}, 0, proto)
        named = f"{domain}.{operator.name}" if domain else operator.name
        with pytest.raises(ModelError, match=f"no gradient can be taken through the operator {named}; use --rank obs"):
            apply_operator(Torch(stand_in, np.float32, 17), node, [np.eye(3)])


def test_rules_are_of_known_operators() -> None:
    """Each stands in the domain that the table says, where the table has it."""
    for domain, name in RULES:
        assert name not in OPERATORS or domain in OPERATORS[name].domains
    gelus = {"Erf", "Tanh", "Sigmoid", "Relu", "Gelu", "FastGelu", "QuickGelu", "BiasGelu"}
    assert gelus <= {name for _, name in RULES} & NONLINEAR
