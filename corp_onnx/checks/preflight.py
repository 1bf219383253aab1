"""What is refused before any work: a destination that would destroy the model, weights that hold NaN, an empty cut.

Enters what a person gave; leaves nothing, or the units to cut. Every refusal here would otherwise come after minutes of
calibration, or as a file that is no model.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from onnx import TensorProto

from corp_onnx.blocks import Blocks, explain_nothing
from corp_onnx.errors import ModelError, NonFiniteError, NothingToPruneError, OptionError, OutputError
from corp_onnx.graph import FLOAT_TYPES, Graph, Model
from corp_onnx.graph.external import read_tensor
from corp_onnx.graph.links import require_readable_name
from corp_onnx.graph.model import hash_file, list_files
from corp_onnx.graph.write import data_path
from corp_onnx.run.outputs import Outputs
from corp_onnx.search.strategy import kept_width
from corp_onnx.settings import Budget, Fractions, Method
from corp_onnx.units import KINDS, Unit, list_units

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
    data = data_path(output)
    if os.path.realpath(data) in map(os.path.realpath, list_files(model)):
        raise OutputError(f"{data}: holds the weights of the model and would be replaced; give another -o.")


def protect_source(model: Model, destinations: Mapping[str, Path]) -> None:
    """Refuse destinations that are the model or its external data, and a model that ONNX Runtime can not open by name.

    Args:
        destinations: every file to be written, by the option that names it.

    Raises:
        OutputError: says which option to change.
        ModelError: the model's path is no text.
    """
    require_readable_name(model.path)
    own = {os.path.realpath(path) for path in list_files(model)}
    for option, path in destinations.items():
        if os.path.realpath(path) in own:
            raise OutputError(f"{path}: is the model itself; give another {option}.")


def watch_source(model: Model) -> Callable[[], None]:
    """A function that raises `ModelError` where the files of a model are others than now, or their content is.

    The file is compared by its hash, that of weights, which may be large, by its size, date and place on the disk.
    """
    seen = {path: _identify(path) for path in list_files(model)[1:]}

    def require_unchanged() -> None:
        with suppress(OSError):
            if hash_file(model.path) == model.sha256 and all(_identify(p) == known for p, known in seen.items()):
                return
        raise ModelError(
            f"{model.path}: was replaced or changed while the run read it, so nothing was written; run it again."
        )

    return require_unchanged


def _identify(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def require_finite_weights(graph: Graph, blocks: Blocks) -> None:
    """Refuse a model with a NaN in any stored tensor, or an infinity in a weight or bias of a unit.

    Stored infinities elsewhere are legal: attention masks are made of them. Reads every weight once.

    Raises:
        NonFiniteError: names the tensor.
    """
    linears = [linear for site in blocks.sites for linear in site.linears]
    slots = [slot for linear in linears for slot in (linear.weight, linear.bias) if slot is not None]
    strict = {_stored_name(graph, slot.name) for slot in slots}
    for name, tensor in _stored_floats(graph):
        values = read_tensor(tensor, graph.model.folder)
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
    while (node := graph.producers.get(name)) is not None and node.inputs:
        name = node.inputs[0]
    return name


def wanted_kinds(method: Method) -> tuple[str, ...]:
    """The kinds of units that a method asks for; under fractions those that one is given for."""
    if not isinstance(method.widths, Fractions):
        return method.units
    given = {f.name for f in fields(method.widths) if getattr(method.widths, f.name)}
    return tuple(name for name in method.units if KINDS[name].fraction in given)


def choose_units(graph: Graph, blocks: Blocks, method: Method) -> tuple[Unit, ...]:
    """The units that a method makes narrower.

    Raises:
        OptionError: a kind that is not known, or fractions that remove nothing.
        NothingToPruneError: no unit of a wanted kind can be pruned.
    """
    unknown = [name for name in method.units if name not in KINDS]
    if unknown or not method.units:
        found = f"found {', '.join(unknown)}" if unknown else "found none"
        raise OptionError(f"--units takes one or more of {', '.join(KINDS)}; {found}.")
    if isinstance(method.widths, Fractions):
        return _choose_cut(graph, blocks, method, method.widths)
    units = list_units(blocks, method.units)
    if method.for_target.equal_heads:
        units = _leave_out_lone(units)
    if not units:
        raise _nothing(graph, blocks, [KINDS[name].noun for name in method.units])
    return units


def _leave_out_lone(units: Sequence[Unit]) -> tuple[Unit, ...]:
    """Without queries and keys whose values stay as they are, and the other way round: they would become unequal."""
    tied = Counter(unit.site.key for unit in units if unit.n_heads is not None)
    return tuple(unit for unit in units if unit.n_heads is None or tied[unit.site.key] > 1)


def _nothing(graph: Graph, blocks: Blocks, wanted: Sequence[str]) -> NothingToPruneError:
    others = Counter(unit.noun for unit in list_units(blocks, KINDS))
    if not others:
        return NothingToPruneError(explain_nothing(graph, blocks))
    return NothingToPruneError(
        f"{graph.model.path}: no {' or '.join(wanted)} that can be pruned, but {_counted(others)}; name those with "
        "--units, and see `corp-onnx inspect` for the reasons."
    )


def _counted(nouns: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {noun}{'s' if n > 1 else ''}" for noun, n in nouns.items())


def _choose_cut(graph: Graph, blocks: Blocks, method: Method, cut: Fractions) -> tuple[Unit, ...]:
    """The units that fractions make narrower; those of a kind with fraction 0 are left alone."""
    given = {f.name: getattr(cut, f.name) for f in fields(cut)}
    spelled = " and ".join(f"--{name} {value:g}" for name, value in given.items())
    if not any(given.values()):
        raise OptionError(f"{spelled} together remove nothing; give one of them a fraction above 0.")
    wanted = wanted_kinds(method)
    if not wanted:
        raise OptionError(
            f"{spelled} cut none of --units {','.join(method.units)}; name the kinds there that they cut, or give a "
            "budget in their place."
        )
    units = list_units(blocks, wanted)
    if not units:
        raise _nothing(graph, blocks, [KINDS[name].noun for name in wanted])
    if all(kept_width(unit.width, unit.removed(cut)) == unit.width for unit in units):
        raise OptionError(
            f"{spelled} remove nothing from units up to {max(unit.width for unit in units)} wide; give larger "
            "fractions."
        )
    return units


def require_reached(graph: Graph, units: Sequence[Unit], outputs: Outputs) -> None:
    """Refuse to judge by what pruning can not change: every width would look free.

    Raises:
        OptionError: says which outputs there are.
    """
    changed = {graph.nodes[unit.site.position] for unit in units}
    if changed & graph.list_sources(outputs.judged):
        return
    others = [task.output for task in outputs.tasks if changed & graph.list_sources([task.output])]
    advice = f"Judge by {' or '.join(others)} with --judge" if others else "Export it with an output behind its blocks"
    raise OptionError(
        f"{graph.model.path}: nothing that can be pruned reaches the output {' or '.join(outputs.judged)}. {advice}."
    )


def settle_budget(method: Method, outputs: Outputs) -> Method:
    """The method with a promise that fits what is judged, where nobody said which.

    Raises:
        OptionError: equal answers are to be counted where they are no classes, or the other way round.
    """
    if not isinstance(method.widths, Budget):
        return method
    budget = method.widths.settle(outputs.is_classes)
    others = [task for task in outputs.judged_tasks if not task.is_classes]
    what = (others or outputs.judged_tasks)[0].describe().removesuffix(".")
    if budget.kind == "agreement" and not outputs.is_classes:
        raise OptionError(
            f"--min-agreement counts equal answers, and {what}: give --min-similarity, or --task classify where its "
            "numbers are classes."
        )
    if budget.kind == "similarity" and outputs.is_classes:
        raise OptionError(f"--min-similarity is of answers that are no classes, and {what}: give --min-agreement.")
    return replace(method, widths=budget)
