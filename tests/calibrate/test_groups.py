"""Units whose sums do not fit into memory at once: several passes, the same moments, arrays that are mapped."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import images_of, probed
from interrupted import KINDS, N_IMAGES, StopError, keep, require_same_bytes, stop_after

from corp_onnx.calibrate.collect import collect_moments, tap_units
from corp_onnx.calibrate.groups import cut_groups, filling_bytes, finished_bytes, pass_bytes
from corp_onnx.errors import InputError
from corp_onnx.moments import ChannelMoments
from corp_onnx.run.sessions import start_session
from corp_onnx.units import list_units

MODEL = "timm_vit_ts17_fused"


def owner(array: Any) -> Any:
    while isinstance(array, np.ndarray):
        array = array.base
    return array


def test_groups_go_by_depth_and_keep_to_the_room() -> None:
    _, blocks = probed(MODEL)
    units = list_units(blocks, KINDS)
    assert cut_groups(units, None) == cut_groups(units, pass_bytes(units)) == (units,)
    for room in (0, pass_bytes(units) // 3, pass_bytes(units) // 2, pass_bytes(units) - 1):
        groups = cut_groups(units, room)
        assert len(groups) > 1
        assert sorted(str(u.key) for group in groups for u in group) == sorted(str(u.key) for u in units)
        assert all(pass_bytes(group) <= room or len(group) == 1 for group in groups)
        depth = [unit.site.key.block for group in groups for unit in group]
        assert depth == sorted(depth)
    assert len(cut_groups(units, 0)) == len(units)


def test_what_a_sum_takes_is_what_its_arrays_take() -> None:
    """Of the state of a filled sum, which holds a few numbers more."""
    graph, blocks = probed(MODEL)
    for unit in list_units(blocks, KINDS):
        moments = collect_moments(graph, [unit], images_of(graph, 2))
        (found,) = (m for _, m in moments.entries)
        grams = sum(getattr(found, name).nbytes for name in found.__slots__ if "gram" in name)
        assert finished_bytes([unit]) == grams
        if isinstance(found, ChannelMoments):
            state = unit.start_sum()
            state.update(*unit.read(tap_units(graph, [unit]).run(feeds(graph)), graph, 2))
            arrays = {k: a for k, a in state.state().items() if k.startswith("gram.") and a.size > 1}
            tile = sum(buffer.nbytes for buffer in state._tiles._buffers)
            assert filling_bytes(unit) == pytest.approx(sum(a.nbytes for a in arrays.values()) + tile, rel=0.1)


def feeds(graph: Any) -> dict[str, np.ndarray]:
    return dict(next(images_of(graph, 2).batches(2)).arrays)


@pytest.mark.parametrize(
    "name", [MODEL, f"{MODEL}_fixed", "hf_bert_ts17_eager_ortbert", "timm_vit_ts17_fp16", "torchvision_vit_ts17"]
)  # fmt: skip
@pytest.mark.parametrize("parts", [0.5, 2, 10**9])
def test_several_passes_give_the_moments_of_one(name: str, parts: int) -> None:
    graph, blocks = probed(name)
    units, images = list_units(blocks, KINDS), images_of(graph, 9)
    expected = collect_moments(graph, units, images, batch_size=4)
    done: list[int] = []
    room = int(pass_bytes(units) / parts)  # twice what one pass takes: whoever gives a room counts on a file
    found = collect_moments(graph, units, images, batch_size=4, room=room, progress=done.append)
    if name == MODEL:
        require_same_bytes(found, expected)
    for key, moments in expected.entries:  # ONNX Runtime may fuse other nodes where other tensors are exposed
        for field in moments.__slots__:
            one, other = getattr(found[key], field), getattr(moments, field)
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * np.abs(other).max())
    assert sum(done) == 9
    for _, moments in found.entries:
        for array in (getattr(moments, n) for n in moments.__slots__ if "gram" in n):
            assert isinstance(owner(array), mmap.mmap)


def test_a_pass_ends_behind_the_last_tensor_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The session of the first block holds nothing of what follows it, and the model's outputs are left out."""
    graph, blocks = probed(MODEL)
    first = [u for u in list_units(blocks, ("mlp",)) if u.site.key.block == 0]
    sizes: list[tuple[int, int]] = []

    def start(proto: Any, *args: Any, stored: Any, **more: Any) -> Any:
        sizes.append((len(proto.graph.node), len(stored)))
        return start_session(proto, *args, stored=stored, **more)

    monkeypatch.setattr("corp_onnx.run.tapped.start_session", start)
    whole, cut = tap_units(graph, first), tap_units(graph, first, whole=False)
    assert all(of_cut < 0.6 * of_whole for of_whole, of_cut in zip(*sizes, strict=True))  # one block of two
    assert cut.outputs == ()
    assert cut.session.outputs == cut.taps
    assert set(whole.run(feeds(graph))) == {*cut.taps, *graph.outputs}
    for name, array in cut.run(feeds(graph)).items():
        np.testing.assert_array_equal(array, whole.run(feeds(graph))[name])


@pytest.mark.parametrize("stop", [5, 15, 25, 39])
def test_passes_that_were_interrupted_end_with_the_same_bytes(stop: int, tmp_path: Path) -> None:
    """In any of them; those that were finished are found again, and removed with the rest."""
    graph, blocks = probed(MODEL)
    units, images = list_units(blocks, KINDS), images_of(graph, N_IMAGES)
    given: dict[str, Any] = {"batch_size": 4, "room": pass_bytes(units) // 2}
    with pytest.raises(StopError):
        collect_moments(graph, units, images, checkpoint=keep(tmp_path), progress=stop_after(stop), **given)
    done: list[int] = []
    found = collect_moments(graph, units, images, checkpoint=keep(tmp_path), progress=done.append, **given)
    assert sum(done) == N_IMAGES
    assert len(done) < 3 * -(-N_IMAGES // 4)
    expected = collect_moments(graph, units, images, batch_size=4)
    require_same_bytes(found, expected)
    again = collect_moments(graph, units, images, checkpoint=keep(tmp_path), **given)
    require_same_bytes(again, expected)
    with pytest.raises(InputError, match=r"holds moments of another calibration; remove it"):
        collect_moments(graph, units, images, checkpoint=keep(tmp_path), batch_size=6, room=given["room"])
    keep(tmp_path).remove()
    assert list(tmp_path.iterdir()) == []
    require_same_bytes(found, expected)  # what is mapped stays
