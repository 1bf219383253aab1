"""Which loss steers best where the output is an embedding: 1 - cosine, squared error, or KL as if it were logits.

The last product of a classifier is cut off, so that what it read becomes the output: an embedding of a real model whose
use is known. It is pruned under a budget with each loss, and judged on other images: cosine, neighbours, and what the
head that was cut off makes of it.

    .venv/bin/python tools/embed_table.py ../shared/models/deit_tiny_patch16_224.onnx \
        --calib ../shared/images/calib --val ../shared/images/val --labels ../shared/images/wordnet_ids.txt
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from study import Study, open_study, study_parser

from corp_onnx.blocks import find_blocks
from corp_onnx.graph import load_model
from corp_onnx.metrics import OutputTask, Task, open_tally
from corp_onnx.run.probe import probe_graph
from corp_onnx.run.sessions import open_session, start_session
from corp_onnx.search.evaluator import Evaluator
from corp_onnx.search.search import prepare_search
from corp_onnx.settings import BEST, Budget
from corp_onnx.threads import few_blas_threads
from corp_onnx.tokens.trim import plan_trim

Head = tuple[np.ndarray, np.ndarray]
"""Weight [d, classes] and bias of the product that was cut off."""

LOSSES: dict[str, Task] = {"1 - cosine": "embed", "squared error": "regress", "KL of the coordinates": "classify"}
"""By what the search is told that the output is."""


@few_blas_threads()
def main() -> None:
    """Cut the head off, prune with each loss, print a row each."""
    parser = study_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.7, 0.5])
    args = parser.parse_args()
    classifier = open_study(args)
    with tempfile.TemporaryDirectory() as folder:
        compare_losses(classifier, Path(folder) / classifier.graph.model.path.name, args.seeds, args.budgets)


def compare_losses(classifier: Study, path: Path, seeds: Sequence[int], budgets: Sequence[float]) -> None:
    """Print the table.

    Args:
        path: where the model without its head is written.
    """
    study, weight, bias = behead(classifier, path)
    head = (weight, bias)
    dense = np.concatenate([study.judge.answers[t.output] for t in study.judge.tasks])
    print(f"dense: {describe(study.judge, dense, dense, head, classifier.labels)}", flush=True)
    print("| MACs kept | steered by | cosine | 1-NN | 10-NN | 1-NN, old | agreement of the head | top-1 of the head |")
    print("|---|---|---|---|---|---|---|---|")
    for seed in seeds:
        problem = study.draw(seed, method=replace(BEST, widths=Budget("macs", 0.5)))
        shape = dense.shape[1:]
        for name, kind in LOSSES.items():
            task = OutputTask(study.judge.tasks[0].output, kind, "", shape, channel_axis=1)
            search = prepare_search(replace(problem, tasks=(task,)))
            for budget in budgets:
                solution = search.refitted("macs", budget)
                rewrite = problem.rewrite(solution.changes, solution.merges)
                found = run(study.judge, rewrite.make(problem.graph))
                print(
                    f"| {budget:.0%} | {name} | {describe(study.judge, found, dense, head, classifier.labels)} |",
                    flush=True,
                )


def behead(study: Study, path: Path) -> tuple[Study, np.ndarray, np.ndarray]:
    """(the study of what the last product reads, its weight [d, classes], its bias); the model is written to a path."""
    graph = study.graph
    proto = onnx.ModelProto()
    proto.CopyFrom(graph.model.proto)
    last = graph.producers[graph.outputs[0]]
    assert last.op == "Gemm", f"expected a Gemm at the end, found {last.op}"
    weights = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    weight, bias = weights[last.inputs[1]], weights[last.inputs[2]]
    weight = weight.T if last.attrs.get("transB") else weight
    kept = [n for n in proto.graph.node if last.output not in n.output]
    del proto.graph.node[:], proto.graph.output[:]
    proto.graph.node.extend(kept)
    proto.graph.output.append(
        onnx.helper.make_tensor_value_info(last.inputs[0], onnx.TensorProto.FLOAT, ["batch", weight.shape[0]])
    )
    onnx.save(proto, path)
    model = load_model(path)
    beheaded = probe_graph(model)

    val_images = study.judge.feeds
    trim, _ = plan_trim(beheaded, find_blocks(beheaded))
    session = open_session(model)
    answers = np.concatenate([session.run(None, feeds)[0][:n] for feeds, n in val_images]).astype(np.float64)
    task = OutputTask(last.inputs[0], "embed", "", answers.shape[1:], channel_axis=1)
    judge = replace(study.judge, model=model, tasks=(task,), answers={task.output: answers})
    return replace(study, graph=beheaded, trim=trim, judge=judge), weight, bias


def run(judge: Evaluator, proto: onnx.ModelProto) -> np.ndarray:
    """The embeddings of a rewritten graph."""
    session = start_session(proto, judge.model)
    return np.concatenate([session.run(None, feeds)[0][:n] for feeds, n in judge.feeds]).astype(np.float64)


def describe(judge: Evaluator, found: np.ndarray, dense: np.ndarray, head: Head, labels: np.ndarray) -> str:
    """The cells of one row."""
    tally = open_tally(judge.tasks[0])
    tally.add(found, dense)
    values = {metric.name: metric.value for metric in tally.metrics()}
    weight, bias = head
    answers, expected = (z @ weight + bias for z in (found, dense))
    first = answers.argmax(axis=1)
    cells = [f"{values['cosine']:.4f}"]
    cells += [f"{100 * values[name]:.1f}" for name in ("nn_agreement", "overlap_at_10", "cross_agreement")]
    cells += [f"{100 * (first == expected.argmax(axis=1)).mean():.1f}", f"{100 * (first == labels).mean():.1f}"]
    return " | ".join(cells)


if __name__ == "__main__":
    main()
