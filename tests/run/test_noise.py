"""Inputs that nobody gave: of the declared types, and of a size that the model takes."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import feeds_of, probed
from onnx import TensorProto

from corp_onnx.errors import ModelError
from corp_onnx.run.noise import TOKEN_COUNTS, random_feeds, run_possible

NAME = "timm_vit_ts17_fused"


def test_elements_of_the_noise() -> None:
    graph, _ = probed(NAME)
    feeds = feeds_of(graph)
    assert feeds["x"].std() == pytest.approx(1, abs=0.1)
    text, _ = probed("hf_bert_ts17_eager")
    ids = random_feeds(text.model, 2)
    assert all((v == 1).all() and v.dtype == np.int64 for v in ids.values())
    kinds = {v.type.tensor_type.elem_type for v in text.model.proto.graph.input}
    assert kinds == {TensorProto.INT64}


def test_sizes_are_tried_until_one_runs() -> None:
    graph, _ = probed("hf_bert_ts17_eager")
    tried: list[int] = []

    def run(feeds: dict[str, np.ndarray]) -> str:
        tried.append(next(iter(feeds.values())).shape[1])
        if len(tried) < 3:
            raise ModelError(f"not {tried[-1]} tokens")
        return "done"

    feeds, found = run_possible(graph.model, 2, run)
    assert found == "done"
    assert tried == list(TOKEN_COUNTS[:3])
    assert next(iter(feeds.values())).shape == (2, TOKEN_COUNTS[2])


def test_where_none_runs_the_first_reason_is_given() -> None:
    graph, _ = probed(NAME)

    def run(feeds: dict[str, np.ndarray]) -> None:
        raise ModelError(f"no run on {len(feeds)} input")

    with pytest.raises(ModelError, match="no run on 1 input"):
        run_possible(graph.model, 2, run)


def test_more_rows_than_any_memory_holds() -> None:
    """`bench --batch` of a slip of the finger; the command line says what a lack of memory says."""
    with pytest.raises(MemoryError):
        random_feeds(probed(NAME)[0].model, 2**63)
