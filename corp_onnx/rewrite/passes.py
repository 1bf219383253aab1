"""The passes in their order, and the one entry point that runs them: prune, verification, probes and tools alike.

cut widths              units of other widths                 rewrite/cut.py
merge tokens            similar ones become one               tokens/merge.py
leave out tokens        what no output reads                  tokens/trim.py
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from corp_onnx.blocks import SiteKey
from corp_onnx.graph import Graph, Model, load_model
from corp_onnx.graph.passes import Pass
from corp_onnx.graph.write import needs_data_file, write_model
from corp_onnx.rewrite.cut import CutWidths
from corp_onnx.run.rewritten import probe_rewritten
from corp_onnx.tokens.merge import MergeTokens
from corp_onnx.tokens.sites import MergeStep
from corp_onnx.tokens.trim import LeaveOutTokens, TrimPlan
from corp_onnx.units import Change, Changes

BETWEEN = "between"
"""Folder of the models between two passes."""


@dataclass(frozen=True, slots=True, eq=False)
class Rewrite:
    """Passes that make one model from another, in order."""

    passes: tuple[Pass, ...]

    def make(self, graph: Graph) -> onnx.ModelProto:
        """The new model in memory."""
        *before, last = self.passes
        for one in before:
            graph = probe_rewritten(graph, replace(graph.model, proto=one.run(graph)))
        return last.run(graph)

    def write(self, graph: Graph, path: Path) -> tuple[Model, ...]:
        """The new model in a file; those between two passes as well where a message may not hold them.

        Returns:
            The model behind every pass; the last lies at `path`, the others in memory, or in a folder beside it: where
            `path` is staged, that is not published (staging.py).
        """
        return tuple(model for _, model in self.write_each(graph, path))

    def write_each(self, graph: Graph, path: Path) -> Iterator[tuple[Graph, Model]]:
        """The same, pass by pass: the graph that it was run on, and the model behind it."""
        *before, last = self.passes
        for i, one in enumerate(before):
            proto = one.run(graph)
            if needs_data_file(proto):
                target = path.with_name(BETWEEN) / f"{i}.onnx"
                target.parent.mkdir(exist_ok=True)
                model = _write(proto, target, graph.model.folder)
            else:
                model = replace(graph.model, proto=proto)
            yield graph, model
            graph = probe_rewritten(graph, model)
        yield graph, _write(last.run(graph), path, graph.model.folder)

    def whole(self, graph: Graph) -> Rewrite:
        """The same surgery with nothing removed."""
        return Rewrite(tuple(one.whole(graph) for one in self.passes))

    @property
    def choices(self) -> tuple[str, ...]:
        """The integer tensors that say what the new model chooses (`Pass.choices`)."""
        return tuple(name for one in self.passes for name in one.choices)

    def padded(self) -> Rewrite:
        """The same solution at full width, zeros where something was removed."""
        return Rewrite(tuple(p for p in (one.padded() for one in self.passes) if p is not None))


def _write(proto: onnx.ModelProto, path: Path, source_folder: Path) -> Model:
    write_model(proto, path, source_folder)
    return load_model(path)


def plan_rewrite(
    changes: Changes,
    trim: TrimPlan | None = None,
    metadata: Mapping[str, str] | None = None,
    merges: Sequence[MergeStep] = (),
) -> Rewrite:
    """The passes that make a pruned model.

    Args:
        changes: what the search and the refit found, by site.
        merges: tokens that merge, in the order of the blocks.
        trim: the tokens that will not be computed.
        metadata: properties to store in the result.
    """
    joined: dict[SiteKey, Change] = dict(changes)
    for key, change in (trim.apart if trim else {}).items():
        joined[key] = joined[key].join(change) if key in joined else change
    merge = (MergeTokens(tuple(merges)),) if merges else ()
    leave_out = (LeaveOutTokens(),) if trim else ()
    return Rewrite((CutWidths(joined, metadata or {}), *merge, *leave_out))
