"""Tables of times: what a curve is between its points, the file, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from corp_onnx.errors import OptionError
from corp_onnx.latency.table import Place, Times, WidthTimes, read_times

PLACE = Place("a machine", "CPUExecutionProvider", "onnxruntime 1.0", 1, None)


def table() -> Times:
    return Times(PLACE, 4.0, 3.5, 0.25, 0.75, {"blocks.0.mlp": WidthTimes((8, 16, 32), (1.0, 2.0, 3.0))})


class TestCurves:
    def test_between_two_points_it_is_a_line_and_nothing_left_takes_nothing(self) -> None:
        curve = WidthTimes((8, 16), (1.0, 2.0)).trace()
        assert curve.shape == (17,)
        assert curve[0] == 0
        assert curve[8] == 1
        assert curve[12] == 1.5
        assert curve[16] == 2
        assert curve[3] == 1  # narrower than what was measured saves nothing that was not measured

    def test_noise_that_makes_a_wider_one_faster_is_no_bargain(self) -> None:
        curve = WidthTimes((8, 16, 24, 32), (1.0, 3.0, 2.0, 4.0)).trace()
        assert (np.diff(curve[1:]) >= 0).all()
        assert curve[16] == curve[24] == 2.5

    @pytest.mark.parametrize(
        ("widths", "seconds"),
        [((), ()), ((8,), ()), ((16, 8), (1.0, 2.0)), ((0, 8), (0.0, 1.0)), ((8,), (float("inf"),)), ((8,), (-1.0,))],
    )
    def test_what_is_no_curve_is_refused(self, widths: tuple[int, ...], seconds: tuple[float, ...]) -> None:
        with pytest.raises(ValueError, match="expected"):
            WidthTimes(widths, seconds)


class TestFiles:
    def test_what_is_read_is_what_was_written(self, tmp_path: Path) -> None:
        path = tmp_path / "times.json"
        path.write_text(table().to_json())
        found = read_times(path, {"blocks.0.mlp": 32})
        assert found.place == PLACE
        assert (found.dense, found.whole, found.merge, found.token_gain) == (4.0, 3.5, 0.25, 0.75)
        assert found.units == table().units

    @pytest.mark.parametrize("widths", [{"blocks.0.mlp": 48}, {"blocks.0.mlp": 32, "blocks.1.mlp": 32}])
    def test_a_table_of_another_model_is_refused(self, tmp_path: Path, widths: dict[str, int]) -> None:
        path = tmp_path / "times.json"
        path.write_text(table().to_json())
        with pytest.raises(OptionError, match="another model"):
            read_times(path, widths)

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda _: "",
            lambda _: "[]",
            lambda _: "{}",
            lambda t: json.dumps({**t, "schema": 2}),
            lambda t: json.dumps({**t, "dense": 0}),
            lambda t: json.dumps({**t, "whole": "fast"}),
            lambda t: json.dumps({**t, "place": {}}),
            lambda t: json.dumps({**t, "units": {"blocks.0.mlp": {"widths": [8], "seconds": []}}}),
            lambda t: json.dumps({**t, "units": {"blocks.0.mlp": 3}}),
        ],
    )
    def test_what_is_no_table_is_refused_in_a_sentence(self, tmp_path: Path, spoil) -> None:
        path = tmp_path / "times.json"
        path.write_text(spoil(json.loads(table().to_json())))
        with pytest.raises(OptionError, match="no table of times"):
            read_times(path, {"blocks.0.mlp": 32})
