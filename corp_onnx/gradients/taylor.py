"""Graph + MLPs + images -> how much the model's own uncertainty depends on each hidden channel (Taylor importance).

With p = softmax(logits) of one image, and x_j a hidden activation at the input of the second product of an MLP,

    L = -sum_k p_k log p_k          importance_j = mean over tokens and images of |x_j dL/dx_j|

AMP, arXiv 2603.08100, section 3: the entropy needs no labels, and the product is the first-order change of L when
channel j is set to zero. ONNX Runtime runs the model up to its first MLP; from there on the graph is interpreted in
PyTorch (operators.py), which returns the gradients of all MLPs in one pass backwards. Extra `taylor`; PyTorch is
imported inside functions.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from corp_onnx.errors import MissingExtraError, NonFiniteError, OptionError
from corp_onnx.gradients.operators import apply_operator
from corp_onnx.gradients.tensors import Torch
from corp_onnx.graph import Graph, Node
from corp_onnx.graph.proto import feed_dtype
from corp_onnx.images import Images
from corp_onnx.progress import Count
from corp_onnx.run.tapped import open_tapped
from corp_onnx.units import Unit
from corp_onnx.units.taps import read_tokens


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """The part of a graph between its first hidden tensors and its logits.

    `nodes` depend on a hidden tensor and lead to the logits; `fed` is what they take from the rest of the graph.
    """

    logits: str
    hidden: tuple[str, ...]
    nodes: tuple[Node, ...]
    fed: tuple[str, ...]
    constants: tuple[str, ...]


def import_torch() -> Any:
    """The module `torch`.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise MissingExtraError(
            "--rank taylor takes gradients and needs PyTorch, which is not installed: pip install 'corp-onnx[taylor]'. "
            "--rank obs needs none."
        ) from error


def find_logits(graph: Graph) -> str:
    """The tensor whose softmax is the model's answer: its first output, or what a last Softmax takes.

    Raises:
        OptionError: the model's first output is not [images, classes].
    """
    output = graph.outputs[0]
    if len(graph.dims(output)) != 2:
        raise OptionError(
            f"--rank taylor needs the entropy of an answer, and the output '{output}' of this model has the shape "
            f"{list(graph.dims(output))} instead of [images, classes]. Use --rank obs."
        )
    last = graph.producers.get(output)
    return last.inputs[0] if last is not None and last.op == "Softmax" else output


def find_stretch(graph: Graph, hidden: Sequence[str], logits: str) -> Stretch:
    """The nodes that gradients have to pass from `logits` back to the tensors `hidden`."""
    before = _ancestors(graph, logits)
    nodes = tuple(n for n in graph.nodes if n.position in before & _descendants(graph, hidden))
    made = {name for node in nodes for name in node.outputs}
    taken = [i for n in nodes for i in (*n.inputs, *sorted(graph.captured(n))) if i and i not in made]
    taken = list(dict.fromkeys([*taken, *(h for h in hidden if h not in made)]))
    constants = tuple(i for i in taken if graph.is_constant(i))
    return Stretch(logits, tuple(hidden), nodes, tuple(i for i in taken if i not in constants), constants)


def _descendants(graph: Graph, names: Sequence[str]) -> set[int]:
    found: set[int] = set()
    todo = list(names)
    while todo:
        new = [node for node, _ in graph.users(todo.pop()) if node.position not in found]
        found |= {node.position for node in new}
        todo += [out for node in new for out in node.outputs if out]
    return found


def _ancestors(graph: Graph, name: str) -> set[int]:
    found: set[int] = set()
    todo = [name]
    while todo:
        node = graph.producers.get(todo.pop())
        if node is not None and node.position not in found:
            found.add(node.position)
            todo += [i for i in (*node.inputs, *graph.captured(node)) if i]
    return found


class EntropyGradient:
    """The stretch in PyTorch, with its constants read once; a running computation over batches."""

    def __init__(self, graph: Graph, stretch: Stretch, *, precision: Literal["float32", "float64"] = "float32") -> None:
        torch = import_torch()
        self.graph = graph
        self.stretch = stretch
        self.torch = Torch(torch, getattr(torch, precision), graph.model.opset)
        self._constants = {name: self._place(graph.constant(name)) for name in self.stretch.constants}

    def _place(self, value: Any) -> Any:
        """Floats as tensors; integers, masks and single settings stay in NumPy, where shapes are computed."""
        array = np.asarray(value)
        return array if array.dtype.kind in "biu" or array.ndim == 0 else self.torch.tensor(array)

    def read(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """What ONNX Runtime computed, which hands out float32 only, in the types of the graph."""
        return {name: self._place(self._restore_type(name, arrays[name])) for name in self.stretch.fed}

    def _restore_type(self, name: str, array: np.ndarray) -> np.ndarray:
        """Integers and masks back from float32.

        ONNX infers no types behind foreign operators, and a guess that follows the first input may call an embedding an
        integer as its token ids are; what does not hold whole numbers is none.
        """
        kind = feed_dtype(self.graph.types[name]) if name in self.graph.types else np.dtype(np.float32)
        whole = kind.kind in "biu" and np.array_equal(array, np.rint(array))
        return array.astype(kind) if whole else array

    def run(self, fed: Mapping[str, Any]) -> dict[str, Any]:
        """Every tensor of the stretch; the hidden ones and what follows them carry gradients."""
        values: dict[str, Any] = {**self._constants, **fed}
        hidden = set(self.stretch.hidden)
        for name in hidden & values.keys():
            values[name] = values[name].detach().requires_grad_()
        for node in self.stretch.nodes:
            outputs = apply_operator(self.torch, node, [values[i] if i else None for i in node.inputs])
            for name, value in zip(node.outputs, outputs, strict=False):
                if name:
                    values[name] = value.requires_grad_() if name in hidden and not value.requires_grad else value
        return values

    def entropy(self, values: Mapping[str, Any], n_real: int) -> Any:
        """The sum over images of the entropy of their softmax, in nats; filled-up rows of a fixed batch are left out.

        The logits of an image depend on no other, so the gradient of the sum is that of each image.
        """
        log_p = values[self.stretch.logits][:n_real].log_softmax(-1)
        return -(log_p.exp() * log_p).sum()

    def products(self, arrays: Mapping[str, np.ndarray], n_real: int) -> dict[str, np.ndarray]:
        """|x dL/dx| of every hidden tensor, in its own shape."""
        values = self.run(self.read(arrays))
        hidden = [values[name] for name in self.stretch.hidden]
        grads = self.torch.torch.autograd.grad(self.entropy(values, n_real), hidden, allow_unused=True)
        found = [x.detach() * 0 if g is None else (x.detach() * g).abs() for x, g in zip(hidden, grads, strict=True)]
        return {name: value.numpy() for name, value in zip(self.stretch.hidden, found, strict=True)}


def collect_taylor(
    graph: Graph,
    units: Sequence[Unit],
    images: Images,
    *,
    batch_size: int = 8,
    provider: str = "cpu",
    progress: Count | None = None,
) -> dict[str, Float[np.ndarray, " d_hidden"]]:
    """The importance of every hidden channel of every unit that a rank by gradients looks at, by its key as text.

    Args:
        graph: of the dense model, from `probe_graph`.
        images: unlabelled.
        batch_size: images at a time; every activation after the first MLP of a batch is kept for the way back, about
            70 MiB an image on ViT-B. Has no effect on the result beyond rounding.
        provider: where the part before the first MLP runs; the gradients are taken on the CPU.

    Raises:
        MissingExtraError: PyTorch is not installed.
        OptionError: the model's first output is not [images, classes].
        ModelError: an operator has no rule; names it.
        NonFiniteError: a gradient is NaN or Inf.
    """
    ranked = [unit for unit in units if unit.gradient_tensor]
    if not ranked:
        return {}
    hidden = tuple(dict.fromkeys(unit.gradient_tensor for unit in ranked))
    gradient = EntropyGradient(graph, find_stretch(graph, hidden, find_logits(graph)))
    sums = {str(unit.key): np.zeros(unit.width) for unit in ranked}
    counts = dict.fromkeys(sums, 0)
    tapped = open_tapped(graph.model, gradient.stretch.fed, provider=provider)
    for arrays, n_real in tapped.stream(images, batch_size):
        products = gradient.products(arrays, n_real)
        for unit in ranked:
            tokens, key = read_tokens(products[unit.gradient_tensor], graph, n_real), str(unit.key)
            sums[key] += tokens.sum(axis=0, dtype=np.float64)
            counts[key] += len(tokens)
        if progress:
            progress(n_real)
    importances = {key: total / counts[key] for key, total in sums.items()}
    for key, importance in importances.items():
        if not np.isfinite(importance).all():
            raise NonFiniteError(f"{graph.model.path}: the gradient at {key} holds NaN or Inf; use --rank obs.")
    return importances
