"""Which outputs can be compared, and which judge."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import fixture_path, probed
from onnx import TensorProto, helper

from corp_onnx.errors import ImageError, OptionError
from corp_onnx.findings import Findings, Subject, read_findings
from corp_onnx.run.noise import random_feeds
from corp_onnx.run.outputs import TASKS_KEY, KnownAnswers, Outputs, find_outputs
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


FOUND = [
    ("hf_dinov2_ts17_sdpa", {"last_hidden_state": "embed", "pooler_output": "embed"}),
    ("hf_dinov2_resized_ts17_sdpa", {"last_hidden_state": "embed", "pooler_output": "embed"}),
    ("hf_dinov3_ts17_sdpa", {"last_hidden_state": "embed", "pooler_output": "embed"}),
    ("hf_clip_vision_ts17_sdpa", {"image_embeds": "embed"}),
    ("hf_siglip_ts17_sdpa", {"pooler_output": "embed"}),
    ("hf_bert_ts17_sdpa", {"last_hidden_state": "embed", "pooler_output": "embed"}),
    ("hf_bert_classifier_ts17_sdpa", {"logits": "classify"}),
    ("timm_vit_dynamo23_fused", {"logits": "classify"}),
]
"""What the outputs of exporters' graphs are."""


@pytest.mark.parametrize(("name", "tasks"), FOUND, ids=[name for name, _ in FOUND])
def test_real_exports_are_taken_for_what_they_are(name: str, tasks: dict[str, str]) -> None:
    graph, _ = probed(name)
    found = find_outputs(open_session(fixture_path(name)), [(random_feeds(graph.model, 4), 4)])
    assert {task.output: task.task for task in found.tasks} == tasks
    assert found.judged == (next(iter(tasks)),)
    assert found.is_classes == (tasks == {"logits": "classify"})


def read_again(tmp_path: Path, stored: str, task: str = "auto") -> Outputs:
    """A classifier whose file says something else of its logits."""
    model = onnx.load(fixture_path("timm_vit_dynamo23_fused"))
    helper.set_model_props(model, {TASKS_KEY: stored})
    onnx.save(model, tmp_path / "m.onnx")
    graph, _ = probed("timm_vit_dynamo23_fused")
    feeds = [(random_feeds(graph.model, 4), 4)]
    return find_outputs(open_session(tmp_path / "m.onnx"), feeds, task=task)  # type: ignore[arg-type]


def test_what_a_pruned_file_says_of_itself_counts_before_looks(tmp_path: Path) -> None:
    (task,) = read_again(tmp_path, '{"logits": "embed"}').tasks
    assert (task.task, task.why) == ("embed", "the file says so")
    (task,) = read_again(tmp_path, '{"logits": "embed"}', "classify").tasks
    assert (task.task, task.why) == ("classify", "--task")


@pytest.mark.parametrize("stored", ["[", '["logits"]', '{"logits": "guess"}', '{"logits": "dense"}', '{"x": "embed"}'])
def test_what_it_says_wrongly_does_not(stored: str, tmp_path: Path) -> None:
    (task,) = read_again(tmp_path, stored).tasks
    assert (task.task, task.why) == ("classify", "its name")


class TestKnownAnswers:
    NAMES = ("logits", "aux")

    def known(self, findings: Findings, digest: str = "of images") -> KnownAnswers:
        return KnownAnswers(findings, self.NAMES, {"images": digest, "outputs": [*self.NAMES]})

    def test_come_back_from_a_file_in_the_order_of_the_model(self, tmp_path: Path) -> None:
        """A file of findings sorts its arrays; what is judged is the first output of the model."""
        findings = Findings(Subject("model", "images"))
        self.known(findings).keep({name: np.full((2, 3), i) for i, name in enumerate(self.NAMES)})
        findings.write(tmp_path / "c.safetensors")
        found = self.known(read_findings(tmp_path / "c.safetensors")).find()
        assert found is not None
        assert tuple(found) == self.NAMES
        assert (found["aux"] == 1).all()
        assert self.known(findings, "of others").find() is None

    def test_batch_by_batch_and_no_more_than_is_remembered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        parts = [{name: np.full((2, 3), float(i)) for name in self.NAMES} for i in range(3)]
        findings = Findings()
        assert list(self.known(findings).watch(parts, lambda part: part)) == parts
        found = self.known(findings).find()
        assert found is not None
        assert found["aux"][:, 0].tolist() == [0, 0, 1, 1, 2, 2]
        monkeypatch.setattr("corp_onnx.run.outputs.ANSWERS_BYTES", 200)
        made: list[weakref.ref[np.ndarray]] = []

        def make() -> Iterator[dict[str, np.ndarray]]:
            for _ in range(6):
                arrays = {name: np.zeros((2, 3)) for name in self.NAMES}
                made.append(weakref.ref(arrays["aux"]))
                yield arrays

        most = 0
        for _ in self.known(findings, "of others").watch(make(), lambda part: part):
            gc.collect()
            most = max(most, sum(ref() is not None for ref in made))
        assert most <= 3  # two of 96 bytes, and the one that is under way
        assert self.known(findings, "of others").find() is None

    def test_images_that_are_gone_are_not_known(self) -> None:
        class Gone:
            def data_hash(self) -> str:
                raise ImageError("can not be read any more")

        known = KnownAnswers.of(Findings(), Gone(), self.NAMES)  # type: ignore[arg-type]
        known.keep({name: np.zeros(2) for name in self.NAMES})
        assert known.find() is None
        assert not known.findings.list_stages()
