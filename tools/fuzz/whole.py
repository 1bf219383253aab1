"""`corp-onnx`, with a copy of every pruned model at full width: the same surgery with nothing removed. A program.

    python -m fuzz.whole WHOLE prune m.onnx ...      WHOLE gets the copy

The package compares the two itself (its check `identity`, on calibration images through its own runner); the attack
compares them again, with `oracle.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from corp_onnx.cli import main
from corp_onnx.graph import Graph, Model
from corp_onnx.rewrite import Rewrite
from corp_onnx.search import problem


def keep_whole(target: Path) -> None:
    """Let the next prune write its model at full width to `target` as well."""
    plan = problem.plan_rewrite

    class Kept(Rewrite):
        """A rewrite that is written twice."""

        def write_each(self, graph: Graph, path: Path) -> Iterator[tuple[Graph, Model]]:
            """As the package does; before it, the whole one."""
            Rewrite.whole(self, graph).write(graph, target)
            yield from Rewrite.write_each(self, graph, path)

    problem.plan_rewrite = lambda *args, **kwargs: Kept(plan(*args, **kwargs).passes)


if __name__ == "__main__":
    keep_whole(Path(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
