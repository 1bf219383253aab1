"""What `inspect` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from corp_onnx.results.base import Result, Rows
from corp_onnx.results.facts import DeadTokens, ModelFacts, SkipFacts, UnitFacts


@dataclass(frozen=True, slots=True, repr=False)
class Inspection(Result):
    """What `inspect` returns; `dead_tokens` is None where every token is read."""

    verb: ClassVar[str] = "inspect"
    model: ModelFacts
    n_blocks: int
    units: tuple[UnitFacts, ...]
    skipped: tuple[SkipFacts, ...]
    dead_tokens: DeadTokens | None = None

    @property
    def prunable(self) -> dict[str, tuple[int, float]]:
        """(units that can be pruned, their share of the MACs) by kind; those that share another's cost are left out."""
        own = [unit for unit in self.units if unit.prunable and not unit.shares_site]
        return {
            kind: (sum(u.kind == kind for u in own), sum(u.mac_share for u in own if u.kind == kind))
            for kind in dict.fromkeys(unit.kind for unit in own)
        }

    @property
    def summary(self) -> str:
        """Its size, and what can be pruned."""
        n_units = sum(n for n, _ in self.prunable.values())
        share = sum(share for _, share in self.prunable.values())
        return (
            f"{self.model.path}: {self.n_blocks} blocks, {self.model.macs / 1e9:.4g} GMACs, "
            f"{self.model.n_parameters:,} parameters; {n_units} units with {share:.1%} of the MACs can be pruned"
        )

    @property
    def table(self) -> Rows:
        """One row a kind of unit."""
        rows = [(kind, str(n), f"{share:.1%}") for kind, (n, share) in self.prunable.items()]
        return [("units", "can be pruned", "of the MACs"), *rows]
