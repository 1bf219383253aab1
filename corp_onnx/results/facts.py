"""A model, and what was found in it: facts that several verbs tell."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A model as it lies on disk: `n_bytes` with external weights, `precision` of most weights (int8 if quantised)."""

    path: str
    sha256: str
    n_bytes: int
    precision: str


@dataclass(frozen=True, slots=True)
class ModelFacts(FileFacts):
    """What is in it. `batch` None is dynamic; `macs` are multiply-accumulates of one image."""

    n_parameters: int
    macs: int
    opset: int
    batch: int | None
    producer: str


@dataclass(frozen=True, slots=True)
class UnitFacts:
    """One unit as `inspect` shows it. Width is d_hidden, or d_head per head; shares are of the whole model."""

    key: str
    kind: str
    block: int
    width: int
    n_heads: int | None
    n_tokens: int
    spelling: str
    n_parameters: int
    macs: int
    parameter_share: float
    mac_share: float
    prunable: bool
    reason: str = ""
    shares_site: bool = False
    """Whether its cost is that of other units, as that of whole heads is."""


@dataclass(frozen=True, slots=True)
class SkipFacts:
    """Something that looked like a unit and is left alone."""

    kind: str
    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class DeadTokens:
    """Tokens of the last block that no output reads: all but `n_read` of `n_tokens`; `macs` is what they cost."""

    n_tokens: int
    n_read: int
    macs: int
    mac_share: float
