"""What is collected from a running model, against the numbers that its own products show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from graphs import ENTRIES, FIXTURES, feeds_of, find_in, images_of, probed, prunable_sites, runs_here
from onnx import numpy_helper
from random_vits import Spelling, write_model

from corp_onnx.blocks import Blocks
from corp_onnx.calibrate.collect import collect_moments, tap_units
from corp_onnx.errors import NonFiniteError
from corp_onnx.graph import Graph
from corp_onnx.moments.tiles import Product
from corp_onnx.moments.values import ChannelMoments, LogitMoments
from corp_onnx.run.tapped import Tapped, open_tapped
from corp_onnx.units import KINDS, Unit, list_units
from corp_onnx.units.mlp import MlpUnit
from corp_onnx.units.qk import QkUnit
from corp_onnx.units.taps import Taps, read_operand, read_tokens

RUN = [n for n in ENTRIES if runs_here(n) and ENTRIES[n]["expect"]["n_blocks"]]


def all_units(blocks: Blocks) -> tuple[Unit, ...]:
    return list_units(blocks, ("mlp", "qk", "vo"))


def tap_with(graph: Graph, units: Sequence[Unit], extra: Sequence[str]) -> Tapped:
    """What the units ask for, and other tensors beside."""
    taps = Taps()
    for unit in units:
        unit.tap(taps)
    return open_tapped(graph.model, [*extra, *taps.tensors], products=list(taps.products.values()))


class TestOperands:
    @pytest.mark.parametrize("name", RUN)
    def test_queries_and_keys_make_the_logits_of_the_graph(self, name: str) -> None:
        """Traps 2, 6 and 9: read by head and token, q k' is what the softmax core multiplies, up to one number."""
        graph, blocks = probed(name)
        units = all_units(blocks)
        softmax = [site for site in prunable_sites(blocks, "qk") if site.core == "softmax"]
        arrays = tap_with(graph, units, [site.node.output for site in softmax]).run(feeds_of(graph, 2))
        n_real = graph.n_images
        for pair in (u for u in units if u.kind == "qk"):
            unit = pair.site
            q, k = pair.read(arrays, graph, n_real)
            assert q.dtype == k.dtype == np.float32
            assert q.shape[0] == k.shape[0]
            assert q.shape[2:] == k.shape[2:] == (unit.n_heads, unit.d_qk)
            if unit not in softmax:
                continue
            ours = (q.transpose(0, 2, 1, 3) @ k.transpose(0, 2, 3, 1)).reshape(-1)  # [images, H, nq, nk]
            theirs = arrays[unit.node.output].reshape(-1)
            factor = float(theirs @ ours / (ours @ ours))
            allowed = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-4}[graph.float_type]
            assert np.abs(theirs - factor * ours).max() < allowed * np.abs(theirs).max()
            assert factor == pytest.approx(unit.scale, rel=1e-2) or factor == pytest.approx(1, rel=1e-2)

    @pytest.mark.parametrize("name", ["timm_vit_ts17_fused", "torchvision_vit_ts17", "hf_beit_ts17_sdpa_fixed_onnxsim"])
    def test_values_meet_the_probabilities(self, name: str) -> None:
        """P @ V by head, from the values as they are read, is what the output projection reads."""
        graph, blocks = probed(name)
        for pair in list_units(blocks, ("vo",)):
            value = pair.site.operands["v"]
            product = next(n for n, i in graph.users(value.tensor) if n.op == "MatMul" and i == 1)
            arrays = tap_with(graph, [pair], [product.inputs[0], value.projection]).run(feeds_of(graph, 2))
            v = read_operand(arrays, graph, value, graph.n_images)  # [B, N, H, d]
            p = arrays[product.inputs[0]].reshape(len(v), pair.n_heads, v.shape[1], v.shape[1])
            o = np.einsum("bhnm,bmhd->bnhd", p, v).reshape(len(v), v.shape[1], -1)
            (tokens,) = pair.read(arrays, graph, graph.n_images)
            if value.token_major:
                tokens = tokens.reshape(v.shape[1], len(v), -1).transpose(1, 0, 2)
            np.testing.assert_allclose(tokens.reshape(o.shape), o, rtol=1e-4, atol=1e-5)

    def test_other_number_of_tokens_than_the_probe(self, tmp_path: Path) -> None:
        """Tokens folded into the images: how many there are is read off each batch, not off the probe run."""
        proto = write_model(Spelling(qkv="separate", gemm=True, bias="none", n_tokens=4))
        for value in [*proto.graph.input, *proto.graph.output]:
            value.type.tensor_type.shape.dim[1].dim_param = "tokens"
        for tensor in proto.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.dtype == np.int64 and 4 in values[1:2]:
                proto_values = values.copy()
                proto_values[1] = -1
                proto_values[0] = 3
                tensor.CopyFrom(numpy_helper.from_array(proto_values, tensor.name))
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
        graph, blocks = find_in(proto, tmp_path)
        (unit,) = list_units(blocks, ("qk",))
        projection = unit.site.operands["q"].projection
        assert graph.dims(projection) == (48, 12)
        arrays = tap_units(graph, [unit]).run(
            {"x": np.random.default_rng(0).standard_normal((3, 5, 7)).astype(np.float32)}
        )
        q, _ = unit.read(arrays, graph, 3)
        assert q.shape == (3, 5, 2, 6)
        assert np.array_equal(q.reshape(15, 12), arrays[projection])


class TestMoments:
    def test_a_model_of_batch_one_is_added_up_by_the_tile(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One image at a time, a product of [width, tokens] each, costs several times what one for all of them does."""
        graph, blocks = probed("timm_vit_ts17_fused_fixed")
        units = list_units(blocks, ("mlp",))
        images = images_of(graph, 5)
        seen: list[int] = []
        add = Product.add_square
        monkeypatch.setattr(Product, "add_square", lambda s, x: (seen.append(len(x)), add(s, x))[1])
        found = collect_moments(graph, units, images, batch_size=4)
        assert graph.n_images == 1
        assert seen == [5 * 17] * len(units)
        alone = collect_moments(graph, units, images, batch_size=1)
        for (_, one), (_, other) in zip(found.entries, alone.entries, strict=True):
            assert one.n_tokens == other.n_tokens == 5 * 17
            np.testing.assert_allclose(one.covariance, other.covariance, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("cores", [1, 2, 8])
    def test_calls_side_by_side_give_the_same_sums(self, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whichever batch is done first: images go into the sums in their order."""
        graph, blocks = probed("timm_vit_ts17_fused")
        units, images = all_units(blocks), images_of(graph, 11)
        monkeypatch.setattr("os.cpu_count", lambda: cores)
        found, again = (collect_moments(graph, units, images, batch_size=8) for _ in range(2))
        monkeypatch.setattr("os.cpu_count", lambda: 1)
        alone = collect_moments(graph, units, images, batch_size=8)
        for key, moments in found.entries:
            for name in moments.__slots__:
                np.testing.assert_array_equal(getattr(again[key], name), getattr(moments, name))
                np.testing.assert_allclose(getattr(alone[key], name), getattr(moments, name), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        "name",
        ["timm_vit_ts17_fused", "hf_bert_ts17_eager_ortbert", "timm_swiglu_packed_ts17", "torchvision_vit_ts17",
         "timm_swin_ts17_fused_fixed", "timm_vit_ts17_fp16", "timm_vit_ts17_bf16", "timm_siglip_map_ts17"],
    )  # fmt: skip
    def test_sums_are_those_of_the_tensors(self, name: str) -> None:
        """Trap 8 among them: half and bfloat16 activations are summed in float32 and float64."""
        graph, blocks = probed(name)
        units = all_units(blocks)
        images = images_of(graph, 4)
        moments = collect_moments(graph, units, images, batch_size=4)
        chunks = [arrays for arrays, _ in tap_units(graph, units).stream(images, 4)]
        assert [key for key, _ in moments.entries] == [str(u.key) for u in units]
        for unit in (u for u in units if u.kind != "qk"):  # values are read by their output projection
            found = moments[str(unit.key)]
            assert isinstance(found, ChannelMoments)
            tensor = unit.site.hidden if isinstance(unit, MlpUnit) else unit.site.out.linear.input
            x = np.concatenate([a[tensor].reshape(-1, found.gram.shape[0]) for a in chunks]).astype(np.float64)
            assert found.count == len(x)
            np.testing.assert_allclose(found.total, x.sum(axis=0), rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(found.gram, x.T @ x, rtol=1e-4, atol=1e-3)
        for unit in (u for u in units if isinstance(u, QkUnit)):
            found = moments[str(unit.key)]
            assert isinstance(found, LogitMoments)
            q, k = (np.concatenate(parts) for parts in zip(
                *(unit.read(a, graph, graph.n_images if graph.fixed_batch else 4) for a in chunks),
                strict=True,
            ))  # fmt: skip
            np.testing.assert_allclose(found.q_gram, np.einsum("bnhd,bnhe->hde", q, q), rtol=1e-3, atol=1e-3)
            centred = k - k.mean(axis=1, keepdims=True)
            np.testing.assert_allclose(
                found.k_centred_gram, np.einsum("bnhd,bnhe->hde", centred, centred), rtol=1e-3, atol=1e-3
            )

    def test_batches_do_not_matter(self) -> None:
        graph, blocks = probed("timm_vit_dynamo23_fused")
        units, images = all_units(blocks), images_of(graph, 5)
        done: list[int] = []
        whole = collect_moments(graph, units, images, batch_size=5, progress=done.append)
        parts = collect_moments(graph, units, images, batch_size=2, progress=done.append)
        assert sum(done[:-3]) == 5
        assert done[-3:] == [2, 2, 1]
        for key, found in whole.entries:
            other = parts[key]
            for field in (
                ("gram", "total") if isinstance(found, ChannelMoments) else ("q_gram", "k_gram", "logit_energy")
            ):
                np.testing.assert_allclose(getattr(found, field), getattr(other, field), rtol=1e-4, atol=1e-4)

    def test_wanted_kinds_only(self) -> None:
        _, blocks = probed("timm_vit_dynamo23_fused")
        for wanted in (("qk",), ("mlp", "vo"), tuple(KINDS)):
            units = list_units(blocks, wanted)
            assert {u.kind for u in units} == set(wanted)
            taps = Taps()
            for unit in units:
                unit.tap(taps)
            tapped = tap_units(probed("timm_vit_dynamo23_fused")[0], units)
            assert set(tapped.taps) == {*taps.tensors, *taps.products}


class TestFixedBatch:
    """Trap 8: the rows that fill up a fixed batch are no images."""

    @pytest.mark.parametrize(
        "spelling", [Spelling(), Spelling(gemm=True), Spelling(qkv="flat"), Spelling(heads_in_batch=True)]
    )
    def test_filled_up_rows_do_not_count(self, spelling: Spelling, tmp_path: Path) -> None:
        dynamic, dynamic_blocks = find_in(write_model(spelling), tmp_path)
        images = images_of(dynamic, 4)
        expected = collect_moments(dynamic, all_units(dynamic_blocks), images, batch_size=4)
        fixed, fixed_blocks = find_in(write_model(replace(spelling, batch=3)), tmp_path)
        assert fixed.fixed_batch
        found = collect_moments(fixed, all_units(fixed_blocks), images)
        for key, moments in expected.entries:
            other = found[key]
            fields = (
                ("count", "gram", "total") if isinstance(moments, ChannelMoments) else ("n_images", "q_gram", "k_gram")
            )
            for field in fields:
                np.testing.assert_allclose(getattr(other, field), getattr(moments, field), rtol=1e-4, atol=1e-4)

    def test_tokens_first(self) -> None:
        """Of [tokens, images] the last images go, not the last tokens."""
        graph, _ = probed("timm_vit_ts17_fused_fixed")
        graph = replace(graph, n_images=4)
        array = np.arange(3 * 4 * 2).reshape(3, 4, 2)
        expected = array[:, :3].reshape(-1, 2)
        assert np.array_equal(read_tokens(array, graph, 3), expected)
        assert np.array_equal(read_tokens(array.reshape(12, 2), graph, 3, token_major=True), expected)
        first = array.reshape(4, 3, 2)
        assert np.array_equal(read_tokens(first, graph, 3), first[:3].reshape(-1, 2))
        assert np.array_equal(read_tokens(first.reshape(12, 2), graph, 3), first[:3].reshape(-1, 2))
        assert np.array_equal(read_tokens(array, graph, 4), array.reshape(-1, 2))


class TestNotFinite:
    def test_exposed_tensor(self, tmp_path: Path) -> None:
        proto = write_model(Spelling())
        weight = next(t for t in proto.graph.initializer if list(t.dims) == [7, 12])
        broken = numpy_helper.to_array(weight).copy()
        broken[0, 0] = np.nan
        weight.CopyFrom(numpy_helper.from_array(broken, weight.name))
        graph, blocks = find_in(proto, tmp_path)
        with pytest.raises(NonFiniteError, match=r"tensor '.*' \(blocks\.0\.mlp\) holds NaN"):
            collect_moments(graph, all_units(blocks), images_of(graph, 2))


def test_fixtures_are_there() -> None:
    assert len(RUN) > 100
    assert all((FIXTURES / ENTRIES[n]["file"]).is_file() for n in RUN)
