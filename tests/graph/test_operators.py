"""The table of operators against the schemas of ONNX and of ONNX Runtime, and what its traits promise, by running."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import corp_onnx
from corp_onnx.blocks.core import ADDED
from corp_onnx.blocks.core import OPERATORS as KNOWN_ATTENTIONS
from corp_onnx.blocks.mlp import ACTIVATIONS
from corp_onnx.graph import operators
from corp_onnx.graph.operators import MICROSOFT, OPERATORS, TABLE, Operator, Trait, name_operators

SINCE = {"Attention": 23, "RMSNormalization": 23, "Swish": 24, "LinearAttention": 27}
"""Opset from which on an operator is there, where the oldest onnx that we take does not know it."""

YOUNG = {"LinearAttention", "PagedAttention"}
"""Not in the oldest ONNX Runtime that we take."""

RUNTIME_ONLY = {"SimplifiedLayerNormalization"}
"""ONNX Runtime puts it into ONNX's own domain."""


def onnx_schemas() -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = defaultdict(list)
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            found[schema.name].append(schema)
    return found


def runtime_names(domain: str) -> set[str]:
    state = pytest.importorskip("onnxruntime.capi._pybind_state")
    return {s.name for s in state.get_all_operator_schema() if s.domain == domain}


SCHEMAS = onnx_schemas()
NEWEST = onnx.defs.onnx_opset_version()


def latest(operator: Operator) -> Any:
    return max(SCHEMAS[operator.name], key=lambda s: s.since_version)


def operators_with(trait: Trait) -> list[Any]:
    """Those that the installed onnx defines itself."""
    return [pytest.param(o, id=o.name) for o in TABLE if o.traits & trait and o.name in SCHEMAS and "" in o.domains]


def test_names_are_unique() -> None:
    assert len(OPERATORS) == len(TABLE)


@pytest.mark.parametrize("operator", TABLE, ids=lambda o: o.name)
def test_onnx_defines_what_the_table_says_it_does(operator: Operator) -> None:
    expected = "" in operator.domains and operator.name not in RUNTIME_ONLY
    if SINCE.get(operator.name, 0) <= NEWEST:
        assert (operator.name in SCHEMAS) == expected
    if operator.name in SINCE and operator.name in SCHEMAS:
        assert min(s.since_version for s in SCHEMAS[operator.name]) == SINCE[operator.name]


@pytest.mark.parametrize("operator", TABLE, ids=lambda o: o.name)
def test_onnx_runtime_defines_what_the_table_says_it_does(operator: Operator) -> None:
    known = operator.name in runtime_names(MICROSOFT)
    assert known == (MICROSOFT in operator.domains) or (operator.name in YOUNG and not known)
    if operator.name in RUNTIME_ONLY:
        assert operator.name in runtime_names("")


def test_every_row_is_used() -> None:
    """A row without a trait is there for its output type; a trait without a row would be a set that is empty."""
    assert all(o.traits or o.gives is not None for o in TABLE)
    assert all(name_operators(trait) for trait in Trait)


def test_sets_have_the_operators_that_rooms_knew() -> None:
    """What was accepted when every room had a list of its own is accepted still."""
    mlp = (
        {"Erf", "Tanh", "Sigmoid", "Relu", "Gelu", "FastGelu", "QuickGelu", "BiasGelu", "Elu", "LeakyRelu"}
        | {"HardSigmoid", "HardSwish", "Mish", "Softplus", "Swish", "Celu", "Selu"}
    )  # fmt: skip
    assert mlp <= operators.NONLINEAR <= operators.ELEMENTWISE
    pointwise = {"Exp", "Sqrt", "Neg", "Abs", "Reciprocal", "Clip", "Identity", "Dropout", "Cast", "Add", "Sub", "Mul"}
    tokens = {"And", "Or", "Not", "Equal", "Less", "Greater", "IsNaN", "Log", "Sin", "Cos", "CastLike", "BiasAdd"}
    assert pointwise | tokens | {"Div", "Pow", "Where", "Max", "Min"} <= operators.ELEMENTWISE
    assert {"Identity", "Dropout", "Cast"} == operators.PASS_THROUGH
    assert {"Reshape", "Flatten", "Squeeze", "Unsqueeze"} == operators.RESHAPES
    assert operators.RESHAPES | {"Transpose", "Split", "Slice", "Gather"} == operators.MOVES
    folded = {"Transpose", "Concat", "Expand", "Flatten", "Shape", "Range"}
    assert operators.SHAPE_ARITHMETIC | folded == operators.FOLDABLE
    assert {"MatMul", "Gemm", "FusedMatMul", "FusedGemm"} == operators.PRODUCTS
    assert len(operators.QUANTISED) == 12  # one more would refuse models that are taken today


@pytest.mark.parametrize("operator", operators_with(Trait.ELEMENTWISE))
def test_elementwise_numbers_depend_on_their_own_place(operator: Operator) -> None:
    """Half of the columns alone give half of the columns."""
    schema = latest(operator)
    n_data = 1 if operator.traits & Trait.FIRST else max(schema.min_input, 2 if len(schema.inputs) > 1 else 1)
    data = [random_input(operator, schema, idx, np.random.default_rng(idx)) for idx in range(n_data)]
    whole = evaluate(operator, data)
    assert whole.shape == data[0].shape
    np.testing.assert_array_equal(evaluate(operator, [x[:, 3:] for x in data]), whole[:, 3:])


def random_input(operator: Operator, schema: Any, idx: int, rng: np.random.Generator) -> np.ndarray:
    kinds = latest_types(schema, idx)
    if kinds == {"tensor(bool)"}:
        return rng.integers(0, 2, (4, 6)).astype(bool)
    if operator.name == "Mod":
        return rng.integers(1, 9, (4, 6))
    return rng.uniform(0.1, 2.0, (4, 6)).astype(np.float32)


def latest_types(schema: Any, idx: int) -> set[str]:
    return set(schema.inputs[min(idx, len(schema.inputs) - 1)].types)


def evaluate(operator: Operator, data: list[np.ndarray]) -> np.ndarray:
    names = [f"x{i}" for i in range(len(data))]
    feeds: dict[str, Any] = dict(zip(names, data, strict=True))
    attrs = {"to": TensorProto.FLOAT} if operator.name == "Cast" else {}
    if operator.name == "CastLike":
        names, feeds = [*names, "like"], feeds | {"like": np.ones(1, np.float32)}
    node = helper.make_node(operator.name, names, ["y"], **attrs)
    kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feeds.items()}
    values = [helper.make_tensor_value_info(name, kind, feeds[name].shape) for name, kind in kinds.items()]
    graph = helper.make_graph([node], "one", values, [onnx.ValueInfoProto(name="y")])
    opset = helper.make_opsetid("", latest(operator).since_version)
    model = onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=[opset]))
    (found,) = ReferenceEvaluator(model).run(None, feeds)  # type: ignore[misc]
    return np.asarray(found)


@pytest.mark.parametrize("operator", operators_with(~Trait(0)))
def test_output_type_is_the_schemas(operator: Operator) -> None:
    """bool for comparisons and int64 for counters where the schema allows nothing else."""
    fixed = latest(operator).outputs[0].types
    if operator.gives == TensorProto.BOOL:
        assert set(fixed) == {"tensor(bool)"}
    elif operator.gives == TensorProto.INT64:
        assert "tensor(int64)" in fixed
    elif operator.name not in ("Cast", "CastLike") and not operator.traits & Trait.QUANTISED:
        assert set(fixed) & {"tensor(float)"}


def test_output_type_is_there_for_all_that_count_or_compare() -> None:
    for operator in (o for o in TABLE if o.name in SCHEMAS and "" in o.domains):
        fixed = set(latest(operator).outputs[0].types)
        if fixed == {"tensor(bool)"}:
            assert operator.gives == TensorProto.BOOL, operator.name
        if fixed == {"tensor(int64)"}:
            assert operator.gives == TensorProto.INT64, operator.name


@pytest.mark.parametrize("operator", operators_with(Trait.MATMUL | Trait.GEMM | Trait.CONVOLUTION))
def test_factor_is_the_input_that_the_schema_says(operator: Operator) -> None:
    """The first input behind the data that may be a matrix, its scale and zero point apart."""
    names = [i.name.lower() for i in latest(operator).inputs]
    assert names[0][0] in "ax"
    assert names[operator.factor][0] in "bw"
    assert names[operator.factor] in ("b", "w")


@pytest.mark.parametrize("operator", operators_with(Trait.REDUCTION))
def test_reductions_take_axes(operator: Operator) -> None:
    assert [i.name for i in latest(operator).inputs] == ["data", "axes"]
    assert "axes" in min(SCHEMAS[operator.name], key=lambda s: s.since_version).attributes


@pytest.mark.parametrize("operator", operators_with(Trait.NORM | Trait.SOFTMAX))
def test_norms_and_softmaxes_have_an_axis(operator: Operator) -> None:
    assert latest(operator).attributes["axis"].default_value.i == -1


def test_traits_that_go_with_others() -> None:
    assert operators.MEASURED | operators.INT4 <= operators.QUANTISED
    assert operators.RESHAPES <= operators.MOVES
    assert operators.FIRST_IS_DATA | operators.PASS_THROUGH <= operators.ELEMENTWISE
    assert operators.NORMS | operators.SKIP_NORMS <= operators.NORMALISATIONS
    assert operators.SUMS_OF_SQUARES <= operators.REDUCTIONS
    assert not operators.MOVES & operators.ELEMENTWISE
    assert not operators.PRODUCTS & operators.QUANTISED


PACKAGE = Path(corp_onnx.__file__).parent
APART = [PACKAGE / "graph" / "operators.py", *(PACKAGE / "gradients").glob("*.py")]
"""The table itself, and rules that are functions by operator."""


def operator_lists(text: str) -> list[set[str]]:
    """Sets, lists and tuples of four operators or more that a module writes out; fewer are a spelling."""
    literals = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Set | ast.List | ast.Tuple)]
    names = [{e.value for e in n.elts if isinstance(e, ast.Constant) and isinstance(e.value, str)} for n in literals]
    return [found for found in names if len(found) > 3 and found <= OPERATORS.keys()]


@pytest.mark.parametrize("path", [p for p in sorted(PACKAGE.rglob("*.py")) if p not in APART], ids=lambda p: p.stem)
def test_no_room_has_a_list_of_its_own(path: Path) -> None:
    assert operator_lists(path.read_text(encoding="utf-8")) == []


def test_the_reader_of_lists_sees_them() -> None:
    """The test above can fail."""
    assert operator_lists('A = frozenset({"Add", "Mul", "Erf", "Sub"} | {"Add"})') == [{"Add", "Mul", "Erf", "Sub"}]
    assert operator_lists('x in ("Add", "Mul") or y in ("a", "b", "Add")') == []


@pytest.mark.parametrize("known", [ACTIVATIONS, ADDED, KNOWN_ATTENTIONS])
def test_tags_are_of_operators_of_the_table(known: Collection[str]) -> None:
    assert set(known) <= OPERATORS.keys()
    assert set(ACTIVATIONS) <= operators.NONLINEAR
    assert operators.ATTENTIONS > KNOWN_ATTENTIONS


def test_a_set_is_of_any_of_the_traits() -> None:
    assert name_operators(Trait.RESHAPE | Trait.SOFTMAX) == operators.RESHAPES | {"Softmax", "LogSoftmax"}
    assert name_operators(Trait(0)) == frozenset()
