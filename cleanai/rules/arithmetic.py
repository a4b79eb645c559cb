"""Element by element, and along dimensions: reductions, softmax, running sums."""

from __future__ import annotations

from collections.abc import Iterable

from cleanai.fields import IntArray, Labelled, take_along
from cleanai.rules.context import (
    Context,
    Inputs,
    handles,
    keep_apart,
    keep_whole,
    known,
    reduce,
    saved_tensor,
    unite_elementwise,
)
from cleanai.trace import Operation

# ------------------------------------------------------------------------------------------------ element by element


@handles(
    "Add Sub Rsub Mul Div Maximum Minimum Fmax Fmin Where MaskedFill Pow Addcmul Addcdiv Lerp Atan2 PreluKernel Fmod "
    "Remainder Hypot Copysign Ldexp Nextafter Xlogy SpecialXlog1Py SpecialZeta Logaddexp Logaddexp2 Igamma Igammac "
    "Clamp ClampMin ClampMax Complex Polar"
)
def _elementwise(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    shape = op.shapes[0]
    return [Labelled(shape, unite_elementwise(context, [*known(inputs), *_constants(op, inputs)], shape, op.where))]


_ARGUMENTS = {
    "Addcmul": ("self", "tensor1", "tensor2"),
    "Addcdiv": ("self", "tensor1", "tensor2"),
    "Lerp": ("self", "end", "weight"),
    "Clamp": ("self", "min", "max"),
    "ClampMin": ("self", "min"),
    "ClampMax": ("self", "max"),
    "Pow": ("self", "exponent"),
    "PreluKernel": ("self", "weight"),
    "Complex": ("real", "imag"),
    "Polar": ("abs", "angle"),
}


def _constants(op: Operation, inputs: Inputs) -> list[Labelled]:
    """Operands that are no part of the graph but whose shape autograd kept: tensors made in forward, masks."""
    # mul and div save *the other* operand for each operand's gradient.
    names = [
        name
        for name, value in zip(_ARGUMENTS.get(op.kind, ("self", "other", "weight")), inputs, strict=False)
        if value is None
    ]
    shapes = [op.saved_shape(name) for name in (*names, "mask", "condition")]
    return [Labelled(shape) for shape in shapes if shape is not None and len(shape) <= len(op.shapes[0])]


@handles(
    "Relu Sigmoid Tanh Gelu Silu Mish Hardswish Hardsigmoid Hardtanh Elu Celu LeakyRelu Softplus Threshold LogSigmoid "
    "Hardshrink Softshrink RreluWithNoise RreluWithNoiseFunctional Exp Exp2 Expm1 Log Log2 Log10 Log1P Sqrt Rsqrt Abs "
    "Neg Reciprocal Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh Sinc Erf Erfc Erfinv Sign Sgn Floor Ceil "
    "Round Trunc Frac Frexp Logit NanToNum Deg2Rad Rad2Deg Lgamma Mvlgamma Digamma Polygamma I0 SpecialI0E SpecialI1 "
    "SpecialI1E SpecialEntr SpecialErfcx SpecialNdtri SpecialLogNdtr SpecialBesselJ0 SpecialBesselJ1 SpecialBesselY0 "
    "SpecialBesselY1 SpecialModifiedBesselI0 SpecialModifiedBesselI1 SpecialModifiedBesselK0 SpecialModifiedBesselK1 "
    "Angle Conj ConjPhysical NegView Clone LazyClone Alias ToCopy Copies Lift LiftFresh NativeDropout FusedDropout "
    "Fill Zero"
)
def pass_through(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """An operation on each value by itself: the fields stay, where the shape does."""
    value = inputs[0]
    return [Labelled(shape, dict(value.fields) if value and value.shape == shape else {}) for shape in op.shapes]


@handles("Glu")
def _glu(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """The first half of a dimension times the sigmoid of the second."""
    (value,) = known(inputs)
    dim = op.saved_int("dim") % len(value.shape)
    half = value.shape[dim] // 2
    if dim in value.fields:
        context.labels.cut(value.fields[dim], dim, (half,))
    halves = [Labelled(op.shapes[0], take_along(value, dim, part)) for part in (slice(half), slice(half, None))]
    return [Labelled(op.shapes[0], unite_elementwise(context, halves, op.shapes[0], op.where))]


# -------------------------------------------------------------------------------------------------- along dimensions


def _dims(op: Operation, rank: int) -> tuple[int, ...]:
    """The dimensions that an operation was given: one, several, or all of them where it names none."""
    dim = op.saved("dim")
    dims = (op.saved_int("dim"),) if isinstance(dim, int) else op.saved_ints("dim")
    return (dims or tuple(range(rank))) if rank else ()


def _along(value: Labelled, dims: Iterable[int]) -> list[IntArray]:
    found = [value.fields.get(dim % len(value.shape)) for dim in dims]
    return [labels for labels in found if labels is not None]


@handles("Mean Sum Nansum Prod Var Std VarMean StdMean Norm LinalgVectorNorm Amax Amin Aminmax Max Min Logsumexp")
def _reduction(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = known(inputs)
    rank = len(value.shape)
    dims = _dims(op, rank)
    reduced = [reduce(context, value, dims, keepdim=len(shape) == rank) for shape in op.shapes]
    context.note_positions(saved_tensor(op, "indices"), reduced[0], _along(value, dims))
    if op.kind in ("Max", "Min"):
        _doubt(context, op, _along(value, dims))
    return reduced


@handles("Softmax LogSoftmax SafeSoftmax Cumsum Cumprod Logcumsumexp Cummax Cummin")
def _over_what_is_kept(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """As many results as there are inputs, each computed over what is kept (of running sums: of what comes before)."""
    (value,) = known(inputs)
    dims = _dims(op, len(value.shape))
    outputs = [Labelled(shape, keep_apart(context, value, dims)) for shape in op.shapes]
    context.note_positions(saved_tensor(op, "indices"), outputs[0], _along(value, dims))
    _doubt(context, op, _along(value, dims))
    return outputs


def _doubt(context: Context, op: Operation, along: Iterable[IntArray]) -> None:
    """What is compared is often used to pick by position next (argmax), of which autograd shows nothing."""
    context.unproven.extend((labels.ravel(), op.where) for labels in along)


@handles("Sort Topk Kthvalue Median Nanmedian Mode")
def _ordered(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """How many come before, of what is ordered, is a number that a cut would change: it stays."""
    (value,) = known(inputs)
    rank = len(value.shape)
    dims = _dims(op, rank)
    whole = Labelled(value.shape, keep_whole(context, value, dims, f"{op.where} orders it"))
    ordered = [
        Labelled(shape, whole.fields) if len(shape) == rank else reduce(context, whole, dims, keepdim=False)
        for shape in op.shapes
    ]
    context.note_positions(saved_tensor(op, "indices"), ordered[0])
    return ordered


@handles("MseLoss SmoothL1Loss HuberLoss BinaryCrossEntropyWithLogits")
def _loss(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """Element by element, and then summed or averaged unless the shape stays."""
    constants = [op.saved_shape(name) for name in ("weight", "pos_weight")]
    constants += [op.saved_shape("target") if any(value is None for value in inputs[:2]) else None]
    operands = [*known(inputs), *(Labelled(shape) for shape in constants if shape is not None)]
    shape = max((value.shape for value in operands), key=len)
    fields = unite_elementwise(context, operands, shape, op.where)
    return [Labelled(op.shapes[0], fields if shape == op.shapes[0] else {})]
