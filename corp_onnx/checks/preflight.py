"""What is refused before any work: a destination that would destroy the model, weights that hold NaN, an empty cut.

Enters what a person gave; leaves nothing, or the units to cut. Every refusal here would otherwise come after minutes of
calibration, or as a file that is no model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from onnx import TensorProto, numpy_helper

from corp_onnx.blocks import Blocks
from corp_onnx.calibrate.collect import Units, choose_units
from corp_onnx.errors import NonFiniteError, NothingToPruneError, OptionError, OutputError
from corp_onnx.graph import FLOAT_TYPES, Graph, Model
from corp_onnx.graph.model import list_files
from corp_onnx.search.plan import Cut, kept_width
from corp_onnx.settings import PruneSettings

SUFFIX = ".onnx"
"""Of what is written: onnx and ONNX Runtime read .json, .ort and .textproto files as other formats."""


def protect_model(model: Model, destinations: Mapping[str, Path], output: Path) -> None:
    """Refuse destinations that are the model, its external data, or no name for an ONNX file.

    Args:
        destinations: every file to be written, by the option that names it.
        output: the one of them that is the new model.

    Raises:
        OutputError: says which option to change.
    """
    if output.suffix.lower() != SUFFIX:
        raise OutputError(f"{output}: the new model needs a name that ends in {SUFFIX}; give another -o.")
    protect_source(model, destinations)
    data = output.with_name(f"{output.name}.data")
    if os.path.realpath(data) in map(os.path.realpath, list_files(model)):
        raise OutputError(f"{data}: holds the weights of the model and would be replaced; give another -o.")


def protect_source(model: Model, destinations: Mapping[str, Path]) -> None:
    """Refuse destinations that are the model or its external data.

    Args:
        destinations: every file to be written, by the option that names it.

    Raises:
        OutputError: says which option to change.
    """
    own = {os.path.realpath(path) for path in list_files(model)}
    for option, path in destinations.items():
        if os.path.realpath(path) in own:
            raise OutputError(f"{path}: is the model itself; give another {option}.")


def require_finite_weights(graph: Graph, blocks: Blocks) -> None:
    """Refuse a model with a NaN in any stored tensor, or an infinity in a weight or bias of a unit.

    Stored infinities elsewhere are legal: attention masks are made of them. Reads every weight once.

    Raises:
        NonFiniteError: names the tensor.
    """
    linears = [li for mlp in blocks.mlps for li in (*(up.linear for up in mlp.ups), mlp.down)]
    linears += [o.linear for unit in blocks.attentions for o in (unit.q, unit.k, unit.v, unit.out) if o is not None]
    slots = [slot for linear in linears for slot in (linear.weight, linear.bias) if slot is not None]
    strict = {_stored_name(graph, slot.name) for slot in slots}
    for name, tensor in _stored_floats(graph):
        values = numpy_helper.to_array(tensor, str(graph.model.folder))
        n_bad = int(np.isnan(values).sum()) + (int(np.isinf(values).sum()) if name in strict else 0)
        if n_bad:
            raise NonFiniteError(
                f"{graph.model.path}: weight '{name}' holds {n_bad} NaN or Inf among {values.size} numbers; "
                "export the model again from a sound checkpoint."
            )


def _stored_floats(graph: Graph) -> Iterator[tuple[str, TensorProto]]:
    """(tensor name, what is stored) of every floating-point initializer and Constant node."""
    inline = [(n.output, n.attrs["value"]) for n in graph.nodes if n.op == "Constant" and "value" in n.attrs]
    for name, tensor in [*graph.initializers.items(), *inline]:
        if tensor.data_type in FLOAT_TYPES:
            yield name, tensor


def _stored_name(graph: Graph, name: str) -> str:
    """The stored tensor behind the Transpose, Cast or Identity that an exporter left in between."""
    node = graph.producers.get(name)
    return _stored_name(graph, node.inputs[0]) if node is not None and node.inputs else name


def choose_wanted(graph: Graph, blocks: Blocks, settings: PruneSettings) -> Units:
    """The units that the settings make narrower.

    Raises:
        OptionError: fractions that remove nothing.
        NothingToPruneError: no unit of a wanted kind was recognised.
    """
    if settings.fractions is not None:
        return choose_cut(graph, blocks, settings.fractions)
    if not settings.by_threshold:
        return choose_units(blocks, vo=settings.best.vo)
    units = choose_units(blocks, qk=False)
    if not units.mlps:
        raise NothingToPruneError(
            f"{graph.model.path}: no MLP that can be pruned, and --allocate amp prunes nothing else; "
            "use --allocate search."
        )
    return units


def choose_cut(graph: Graph, blocks: Blocks, cut: Cut) -> Units:
    """The units that the cut makes narrower; those of a kind with fraction 0 are left alone.

    Raises:
        OptionError: both fractions are 0, or too small to remove a channel anywhere.
        NothingToPruneError: no unit of a wanted kind was recognised.
    """
    if cut.mlp == 0 and cut.attn == 0:
        raise OptionError("--mlp 0 and --attn 0 together remove nothing; give one of them a fraction above 0.")
    units = choose_units(blocks, mlp=cut.mlp > 0, qk=cut.attn > 0)
    widths = [(unit.d_hidden, cut.mlp) for unit in units.mlps] + [(unit.d_qk, cut.attn) for unit in units.qk_pairs]
    if not widths:
        wanted, other = ("MLP", "--attn") if cut.mlp > 0 else ("query/key pair", "--mlp")
        raise NothingToPruneError(
            f"{graph.model.path}: no {wanted} that can be pruned; give {other} a fraction above 0, and see "
            "`corp-onnx inspect` for the reasons."
        )
    if all(kept_width(width, removed) == width for width, removed in widths):
        raise OptionError(
            f"--mlp {cut.mlp:g} and --attn {cut.attn:g} remove nothing from units up to {max(w for w, _ in widths)} "
            "wide; give larger fractions."
        )
    return units
