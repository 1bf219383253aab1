"""What a pass is: whatever changes a graph, as a value. The passes and their order are in rewrite/passes.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import onnx

from corp_onnx.graph.dataflow import Graph
from corp_onnx.graph.model import Model
from corp_onnx.results import CheckResult


class Pass(ABC):
    """A change of a graph: a graph in, a graph out, and what holds before and after.

    Class attributes:
        name: as checks and errors call it.
        requires: what must be true of the graph that comes in.
        ensures: what is true of the graph that comes out, besides the same inputs and outputs.
    """

    name: ClassVar[str]
    requires: ClassVar[str]
    ensures: ClassVar[str]

    @abstractmethod
    def run(self, graph: Graph) -> onnx.ModelProto:
        """The changed graph of a probed graph, which stays as it is.

        Raises:
            CheckFailedError: what the pass requires does not hold.
        """

    @abstractmethod
    def whole(self, graph: Graph) -> Any:
        """The same surgery with nothing removed, so that the graph must still compute the dense function."""

    def padded(self) -> Any:
        """The pass at full width, zeros where something was removed; None where it removes nothing that answers see."""
        return None

    @abstractmethod
    def check(
        self, graph: Graph, before: Model, after: Model, feeds: Mapping[str, np.ndarray], provider: str
    ) -> CheckResult:
        """Whether it did what it ensures, on a real batch.

        Args:
            graph: of the dense model.
            before: the model that it was run on.
            after: the finished model, behind this pass and those that follow.
        """
