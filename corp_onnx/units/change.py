"""What happens to one site of a graph, whichever units ask for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from corp_onnx.blocks import SiteKey
from corp_onnx.graph import Graph
from corp_onnx.units.expected import Expected

if TYPE_CHECKING:
    from corp_onnx.graph.surgeon import Surgeon


class Change(ABC):
    """What happens to one site, whichever units ask for it."""

    @property
    @abstractmethod
    def key(self) -> SiteKey:
        """Of the site."""

    @property
    @abstractmethod
    def removes(self) -> bool:
        """Whether nothing of the site stays but its mean."""

    @classmethod
    @abstractmethod
    def none(cls, site: Any, graph: Graph) -> Any:
        """The change of a site that keeps everything."""

    @abstractmethod
    def edit(self, surgeon: Surgeon) -> None:
        """Make the change in a graph."""

    @abstractmethod
    def join(self, other: Any) -> Any:
        """Both changes of one site as one; `other` came later."""

    @abstractmethod
    def whole(self, graph: Graph) -> Any:
        """The same surgery with nothing removed."""

    @abstractmethod
    def padded(self) -> Any:
        """The same solution at full width, zeros where something was removed."""

    @abstractmethod
    def products(self, graph: Graph) -> Iterator[Expected]:
        """What the products that it touches must compute."""

    @abstractmethod
    def last_product(self, graph: Graph) -> tuple[Float[np.ndarray, "d_out n"], Float[np.ndarray, " d_out"]]:
        """Weight and bias, in float64, of the product that writes into the residual stream."""

    @abstractmethod
    def with_product(self, weight: np.ndarray, bias: np.ndarray) -> Any:
        """The same with another last product."""

    def moved(self, place: Callable[[np.ndarray], np.ndarray]) -> Any:
        """The same with its arrays where `place` lays them."""
        moved: Any = self
        return replace(moved, **{name: place(array) for name, array in self.arrays().items()})

    def arrays(self) -> dict[str, np.ndarray]:
        """Those that it holds, by the names of its fields: every change is a dataclass."""
        held: Any = self
        values = {f.name: getattr(held, f.name) for f in fields(held)}
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
