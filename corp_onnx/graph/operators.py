"""The operators that this package knows, one row each: where they are defined, and what a room may rely on.

A room asks for the operators with a trait and imports that set; it never writes a list of its own. A room that treats
some operator of a set otherwise says why in a comment there. Names are those of onnx.ai/onnx/operators, and of
ContribOperators.md of ONNX Runtime for com.microsoft; a test holds every row against both.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Flag, auto

from onnx import TensorProto

MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""


SOFTMAX_OVER_ONE_AXIS = 13
"""Operator set from which on Softmax leaves all axes but one alone; before, it flattens everything behind its axis."""


class Trait(Flag):
    """What is true of an operator."""

    ELEMENTWISE = auto()  # a number of the output depends on those at its own place; inputs meet by broadcasting
    NONLINEAR = auto()  # may be the activation of an MLP; Exp, Sqrt and their like are parts of other things
    FIRST = auto()  # among element-wise ones: only the first input is data, the others say how
    PASS_THROUGH = auto()  # hands its first input on, value for value (Cast: up to rounding)
    RESHAPE = auto()  # the same numbers in the same order, in another shape
    MOVE = auto()  # the same numbers in other places, or some of them; the first input is data, the others say how
    SIZES = auto()  # what exporters do with the answer of a Shape on its way to where it is used
    FOLDED = auto()  # what else stands between a stored constant and its use
    NORM = auto()  # normalises the last axes, from its attribute `axis` on
    SKIP_NORM = auto()  # the same of the sum of its first two inputs
    NORMALISES = auto()  # divides by a root of a sum of squares, over whatever axes
    SOFTMAX = auto()  # mixes along its attribute `axis` alone (before opset 13, along all from there on)
    REDUCTION = auto()  # folds the axes that its attribute or second input names
    SQUARES = auto()  # among reductions: sums squares, or exponentials
    CHOOSES = auto()  # gives positions of the largest or smallest numbers: between near-equals rounding decides
    MATMUL = auto()  # multiplies the last axis of its first input
    GEMM = auto()  # multiplies two matrices, either of them transposed, and adds a third
    CONVOLUTION = auto()
    SPREADS = auto()  # among convolutions: a number of its input is multiplied into many of its output
    ATTENTION = auto()  # attention as one operator
    QUANTISED = auto()  # integers in place of floating-point numbers
    MEASURED = auto()  # among quantised ones: ranges are measured while the model runs
    INT4 = auto()  # among quantised ones: four bits a weight


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator by its name, whatever its version.

    Attributes:
        domains: those that define it; "" is ONNX itself.
        traits: what is true of it in each of them.
        gives: element type of its first output, None where it is that of its first floating-point input.
        factor: the input by which it multiplies its first one.
    """

    name: str
    traits: Trait
    domains: tuple[str, ...] = ("",)
    gives: int | None = None
    factor: int = 1


T = Trait
_BOTH = ("", MICROSOFT)
_MS = (MICROSOFT,)
_ARITHMETIC = T.ELEMENTWISE | T.SIZES
_ACTIVATION = T.ELEMENTWISE | T.NONLINEAR
_BOOL, _INT64 = int(TensorProto.BOOL), int(TensorProto.INT64)


def _rows(
    names: str, traits: Trait, domains: tuple[str, ...] = ("",), gives: int | None = None, factor: int = 1
) -> tuple[Operator, ...]:
    return tuple(Operator(name, traits, domains, gives, factor) for name in names.split())


TABLE: tuple[Operator, ...] = (
    # handed on
    *_rows("Identity", T.PASS_THROUGH | _ARITHMETIC),
    *_rows("Cast", T.PASS_THROUGH | _ARITHMETIC),
    *_rows("Dropout", T.PASS_THROUGH | T.ELEMENTWISE | T.FIRST),
    *_rows("CastLike", _ARITHMETIC | T.FIRST),  # not PASS_THROUGH: who reads a tensor for its type does not read it
    # element by element
    *_rows("Erf Tanh Sigmoid Relu Elu LeakyRelu Celu Selu HardSigmoid HardSwish", _ACTIVATION),
    *_rows("Softplus Softsign Mish Swish ThresholdedRelu PRelu", _ACTIVATION),
    *_rows("Gelu", _ACTIVATION, _BOTH),
    *_rows("FastGelu QuickGelu BiasGelu", _ACTIVATION, _MS),
    *_rows("Exp Log Abs Sign Round Sin Cos", T.ELEMENTWISE),
    *_rows("Sqrt Reciprocal Neg Floor Ceil", _ARITHMETIC),
    *_rows("Clip", T.ELEMENTWISE | T.FIRST),
    *_rows("Add Sub Mul Div Pow Mod Max Min", _ARITHMETIC),
    *_rows("Where", T.ELEMENTWISE),
    *_rows("BiasAdd", T.ELEMENTWISE, _MS),
    *_rows("Equal Less Greater LessOrEqual GreaterOrEqual", T.ELEMENTWISE, gives=_BOOL),
    *_rows("Not And Or Xor IsNaN IsInf", T.ELEMENTWISE, gives=_BOOL),
    # moved
    *_rows("Reshape Squeeze Unsqueeze", T.RESHAPE | T.MOVE | T.SIZES),
    *_rows("Flatten", T.RESHAPE | T.MOVE | T.FOLDED),
    *_rows("Split Slice Gather", T.MOVE | T.SIZES),
    *_rows("Transpose", T.MOVE | T.FOLDED),
    *_rows("Concat", T.SIZES),
    *_rows("Expand", T.FOLDED),
    # counted
    *_rows("Shape", T.FOLDED, gives=_INT64),
    *_rows("Range", T.FOLDED, _BOTH, gives=_INT64),
    *_rows("Size NonZero", T(0), gives=_INT64),
    *_rows("ArgMax ArgMin", T.CHOOSES, gives=_INT64),
    *_rows("TopK", T.CHOOSES),
    # mixed along axes
    *_rows("LayerNormalization RMSNormalization", T.NORM | T.NORMALISES),
    *_rows("SimplifiedLayerNormalization", T.NORM | T.NORMALISES),  # in ONNX's domain by ONNX Runtime alone
    *_rows("SkipLayerNormalization SkipSimplifiedLayerNormalization", T.SKIP_NORM | T.NORMALISES, _MS),
    *_rows("EmbedLayerNormalization", T.NORMALISES, _MS),
    *_rows("BatchNormalization InstanceNormalization GroupNormalization LpNormalization", T.NORMALISES),
    *_rows("MeanVarianceNormalization LRN", T.NORMALISES),
    *_rows("Softmax LogSoftmax", T.SOFTMAX),
    *_rows("ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceLogSum", T.REDUCTION),
    *_rows("ReduceL2 ReduceSumSquare ReduceLogSumExp", T.REDUCTION | T.SQUARES),
    # multiplied
    *_rows("MatMul", T.MATMUL),
    *_rows("FusedMatMul", T.MATMUL, _MS),
    *_rows("Gemm", T.GEMM),
    *_rows("FusedGemm", T.GEMM, _MS),
    *_rows("Conv", T.CONVOLUTION),
    *_rows("FusedConv", T.CONVOLUTION, _MS),
    *_rows("ConvTranspose", T.CONVOLUTION | T.SPREADS),
    *_rows("Attention LinearAttention", T.ATTENTION, _BOTH),
    *_rows("MultiHeadAttention GroupQueryAttention PackedAttention PackedMultiHeadAttention", T.ATTENTION, _MS),
    *_rows("DecoderAttention DecoderMaskedMultiHeadAttention DecoderMaskedSelfAttention", T.ATTENTION, _MS),
    *_rows("SparseAttention LongformerAttention PagedAttention", T.ATTENTION, _MS),
    # in integers
    *_rows("QuantizeLinear DequantizeLinear", T.QUANTISED, _BOTH),
    *_rows("DynamicQuantizeLinear", T.QUANTISED | T.MEASURED),
    *_rows("MatMulInteger", T.MATMUL | T.QUANTISED | T.MEASURED),
    *_rows("DynamicQuantizeMatMul", T.MATMUL | T.QUANTISED | T.MEASURED, _MS),
    *_rows("MatMulIntegerToFloat", T.MATMUL | T.QUANTISED | T.MEASURED, _MS),
    *_rows("MatMulNBits", T.MATMUL | T.QUANTISED | T.INT4, _MS),
    *_rows("QLinearMatMul", T.MATMUL | T.QUANTISED, factor=3),
    *_rows("QGemm", T.GEMM | T.QUANTISED, _MS, factor=3),
    *_rows("ConvInteger", T.CONVOLUTION | T.QUANTISED | T.MEASURED),
    *_rows("QLinearConv", T.CONVOLUTION | T.QUANTISED, _BOTH, factor=3),
    *_rows("QAttention", T.ATTENTION | T.QUANTISED, _MS),
)

OPERATORS = {operator.name: operator for operator in TABLE}


def name_operators(traits: Trait) -> frozenset[str]:
    """The operators that have any of these traits."""
    return frozenset(operator.name for operator in TABLE if operator.traits & traits)


ELEMENTWISE = name_operators(T.ELEMENTWISE)
NONLINEAR = name_operators(T.NONLINEAR)
FIRST_IS_DATA = name_operators(T.FIRST)
PASS_THROUGH = name_operators(T.PASS_THROUGH)
RESHAPES = name_operators(T.RESHAPE)
MOVES = name_operators(T.MOVE)
SHAPE_ARITHMETIC = name_operators(T.SIZES)
FOLDABLE = name_operators(T.SIZES | T.FOLDED)  # sizes that are computed from stored numbers are stored numbers

NORMS = name_operators(T.NORM)
SKIP_NORMS = name_operators(T.SKIP_NORM)
NORMALISATIONS = name_operators(T.NORMALISES)
SOFTMAXES = name_operators(T.SOFTMAX)
REDUCTIONS = name_operators(T.REDUCTION)
CHOOSERS = name_operators(T.CHOOSES)
SUMS_OF_SQUARES = name_operators(T.SQUARES)

QUANTISED = name_operators(T.QUANTISED)
MEASURED = name_operators(T.MEASURED)
INT4 = name_operators(T.INT4)
MATMULS = name_operators(T.MATMUL)
GEMMS = name_operators(T.GEMM)
CONVOLUTIONS = name_operators(T.CONVOLUTION)
SPREADING = name_operators(T.SPREADS)
ATTENTIONS = name_operators(T.ATTENTION)
FLOAT_MATMULS = MATMULS - QUANTISED
FLOAT_GEMMS = GEMMS - QUANTISED
PRODUCTS = FLOAT_MATMULS | FLOAT_GEMMS

OUTPUT_TYPES = {operator.name: operator.gives for operator in TABLE if operator.gives is not None}
