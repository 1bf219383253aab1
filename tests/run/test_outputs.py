"""Which outputs can be compared, and which judge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import fixture_path
from onnx import TensorProto, helper

from corp_onnx.errors import OptionError
from corp_onnx.run.outputs import Outputs, find_outputs
from corp_onnx.run.sessions import Session, open_session


@pytest.fixture
def wrapped(tmp_path: Path) -> Session:
    """BERT as a wrapper leaves it that hands its inputs on: token ids and mask come before what it computes."""
    model = onnx.load(fixture_path("hf_bert_ts17_eager"))
    for name in ("attention_mask", "input_ids"):
        model.graph.node.append(helper.make_node("Identity", [name], [f"again/{name}"]))
        value = helper.make_tensor_value_info(f"again/{name}", TensorProto.INT64, ["batch", "sequence"])
        model.graph.output.insert(0, value)
    onnx.save(model, tmp_path / "wrapped.onnx")
    return open_session(tmp_path / "wrapped.onnx")


def look(session: Session, *named: str) -> Outputs:
    ids = np.arange(1, 13).reshape(3, 4)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return find_outputs(session, [(feeds, 3)], named=named)


def test_an_input_handed_on_does_not_judge(wrapped: Session) -> None:
    found = look(wrapped)
    assert found.judged == ("last_hidden_state",)
    assert found.left_out == (
        ("again/input_ids", "it is the input 'input_ids' again"),
        ("again/attention_mask", "it is the input 'attention_mask' again"),
    )
    assert "output 'again/input_ids' is not compared: it is the input 'input_ids' again." in found.describe()


def test_an_input_handed_on_can_not_be_named(wrapped: Session) -> None:
    with pytest.raises(OptionError, match=r"^--judge again/input_ids can not be compared: it is the input 'input_ids'"):
        look(wrapped, "again/input_ids")
