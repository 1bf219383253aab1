"""Ways to spoil names and metadata: what a terminal, a file system, JSON or a table would trip over."""

from __future__ import annotations

import json

import onnx

from fuzz.draw import Rng, pick, pick_inner, pick_node, pick_weight, replace_reads

Model = onnx.ModelProto

RECIPE, LABELS = "corp_onnx.preprocessing", "corp_onnx.labels"
"""Keys that the package reads, written out: an attack does not ask the package."""

ODD_NAMES = (
    "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "a\nb", "a\rb", "a\tb", "a\x00b", "\x08\x08", "\x9b31m", "\u202etxt",
    "../../etc/passwd", "/abs/olute", "C:\\x", "[red]markup[/red]", "[/]", "{0}", "%s%n", "a b", "ü", "日本", "😀",
    ".", "-x", "x" * 10_000, "corp_onnx.shape/x",
)  # fmt: skip


def odd_tensor_name(model: Model, rng: Rng) -> None:
    """Legal: an inner tensor with an odd name."""
    _rename(model, pick_inner(model, rng), pick(rng, ODD_NAMES))


def odd_weight_name(model: Model, rng: Rng) -> None:
    """Legal: a weight with an odd name."""
    tensor = pick_weight(model, rng)
    new = pick(rng, ODD_NAMES)
    replace_reads(model.graph.node, tensor.name, new)
    tensor.name = new


def odd_input_name(model: Model, rng: Rng) -> None:
    """Legal: an input with an odd name."""
    value = pick(rng, model.graph.input)
    new = pick(rng, ODD_NAMES)
    replace_reads(model.graph.node, value.name, new)
    value.name = new


def odd_output_name(model: Model, rng: Rng) -> None:
    """Legal: an output with an odd name."""
    value = pick(rng, model.graph.output)
    new = pick(rng, ODD_NAMES)
    _rename(model, value.name, new)
    value.name = new


def odd_node_names(model: Model, rng: Rng) -> None:
    """Legal: every node has the same odd name."""
    new = pick(rng, ODD_NAMES)
    for node in model.graph.node:
        node.name = new


def odd_operator_name(model: Model, rng: Rng) -> None:
    """An operator with an odd name."""
    pick_node(model, rng).op_type = pick(rng, ODD_NAMES)


def odd_dim_name(model: Model, rng: Rng) -> None:
    """Legal: a dynamic dimension with an odd name."""
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = pick(rng, ODD_NAMES)


def odd_origin(model: Model, rng: Rng) -> None:
    """Legal: producer, domain and descriptions with odd names."""
    for field in ("producer_name", "producer_version", "domain", "doc_string"):
        setattr(model, field, pick(rng, ODD_NAMES))
    model.graph.name = model.graph.doc_string = pick(rng, ODD_NAMES)


def taken_name(model: Model, rng: Rng) -> None:
    """An inner tensor called like a weight."""
    _rename(model, pick_inner(model, rng), pick_weight(model, rng).name)


def names_like_ours(model: Model, rng: Rng) -> None:
    """Legal: tensors called as the package would call new ones."""
    inner = pick_inner(model, rng)
    other = pick(rng, [n.output[0] for n in model.graph.node if n.output and n.output[0] != inner])
    endings = ("_product", "_bias", "_mean", "_0", "_weight")
    _rename(model, inner, pick(rng, [f"corp_onnx.shape/{other}", *(other + end for end in endings)]))


def _rename(model: Model, old: str, new: str) -> None:
    for node in model.graph.node:
        node.output[:] = [new if name == old else name for name in node.output]
    replace_reads(model.graph.node, old, new)
    for value in model.graph.value_info:
        if value.name == old:
            value.name = new


def huge_metadata(model: Model, rng: Rng) -> None:
    """Legal: some megabytes of it."""
    model.metadata_props.add(key="notes", value="x" * int(rng.integers(1 << 20, 1 << 23)))


def many_metadata(model: Model, rng: Rng) -> None:
    """Legal: some thousand entries, some of one key."""
    for i in range(int(rng.integers(1_000, 5_000))):
        model.metadata_props.add(key=f"key {i % 900}", value=str(i))


def odd_metadata(model: Model, rng: Rng) -> None:
    """Legal: entries with odd keys and values."""
    for _ in range(3):
        model.metadata_props.add(key=pick(rng, ODD_NAMES), value=pick(rng, ODD_NAMES))


def odd_recipe(model: Model, rng: Rng) -> None:
    """A preprocessing recipe of odd numbers."""
    recipe = {"schema": 1, "size": [8, 8], "resize": None, "crop_pct": 0.9, "interpolation": "bicubic"}
    recipe |= {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "channels": "RGB"}
    odd = [None, -1, 0, 1e309, float("nan"), 2**70, "text", [], [1], [0, 0, 0], {}, True, [[1]], "\x1b[31m", 1e-320]
    recipe[pick(rng, [*recipe, "more"])] = pick(rng, odd)
    model.metadata_props.add(key=RECIPE, value=json.dumps(recipe))


def no_recipe(model: Model, rng: Rng) -> None:
    """A preprocessing recipe that is none."""
    texts = ("", "{", "[]", "null", "7", "NaN", "[" * 100_000, '{"schema":' * 50_000, "\x00", '"\\ud800"', "1" * 9_999)
    model.metadata_props.add(key=RECIPE, value=pick(rng, texts))


def odd_labels(model: Model, rng: Rng) -> None:
    """Class names that are none, too many, or odd."""
    lists = ([], ["a"], list(ODD_NAMES), ["a"] * 10, [1, 2, 3], {"0": "a"}, None, ["x" * 99_999] * 10, [["a"]] * 10)
    texts = ["[" * 100_000, '["\\ud800"]', "", "[1e999]", *(json.dumps(one) for one in lists)]
    model.metadata_props.add(key=LABELS, value=pick(rng, texts))


def odd_origin_of_pruning(model: Model, rng: Rng) -> None:
    """A file that says that it was pruned, in words that nobody wrote."""
    texts = ("", "{}", "[]", '{"schema": 1}', '{"schema": 99, "settings": null}', "[" * 100_000)
    model.metadata_props.add(key="corp_onnx.prune", value=pick(rng, texts))


SPOILERS = (
    odd_tensor_name, odd_weight_name, odd_input_name, odd_output_name, odd_node_names, odd_operator_name, odd_dim_name,
    odd_origin, taken_name, names_like_ours, huge_metadata, many_metadata, odd_metadata, odd_recipe, no_recipe,
    odd_labels, odd_origin_of_pruning,
)  # fmt: skip
