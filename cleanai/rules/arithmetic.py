"""Element by element, and reductions."""

from __future__ import annotations

from cleanai.fields import Labelled
from cleanai.rules.context import (
    Context,
    Inputs,
    handles,
    known,
    reduce,
    unite_elementwise,
)
from cleanai.trace import Operation


@handles(
    "Add Sub Rsub Mul Div Maximum Minimum Fmax Fmin Where MaskedFill Pow Addcmul Addcdiv Lerp Atan2 "
    "PreluKernel Fmod Remainder Hypot Copysign Xlogy LogAddExp"
)
def _elementwise(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    shape = op.shapes[0]
    return [Labelled(shape, unite_elementwise(context, [*known(inputs), *_constants(op, inputs)], shape, op.where))]


def _constants(op: Operation, inputs: Inputs) -> list[Labelled]:
    """Operands that are no part of the graph but whose shape autograd kept: tensors made in forward, masks."""
    found = []
    names = {0: "self", 1: "other"}
    for position, value in enumerate(inputs):
        # mul and div save *the other* operand for each operand's gradient.
        shape = op.saved_shape(names[position]) if value is None and position in names else None
        if shape is not None and len(shape) <= len(op.shapes[0]):
            found.append(Labelled(shape))
    for name in ("mask", "condition"):
        shape = op.saved_shape(name)
        if shape is not None:
            found.append(Labelled(shape))
    return found


@handles(
    "Relu Sigmoid Tanh Gelu Silu Mish Hardswish Hardsigmoid Hardtanh Elu LeakyRelu Softplus Threshold "
    "LogSigmoid Hardshrink Softshrink Exp Exp2 Expm1 Log Log2 Log10 Log1P Sqrt Rsqrt Abs Neg Reciprocal "
    "Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh Erf Erfc Erfinv Sign Sgn Floor Ceil Round "
    "Trunc Frac Clamp ClampMin ClampMax Clone Alias ToCopy Copies Contiguous NativeDropout Dropout "
    "RreluWithNoise Square Logit NanToNum Positive"
)
def pass_through(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    value = inputs[0]
    return [Labelled(shape, dict(value.fields) if value and value.shape == shape else {}) for shape in op.shapes]


@handles("Mean Sum Var Std VarMean StdMean Norm LinalgVectorNorm Amax Amin Logsumexp Max Min Nansum")
def _reduction(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = known(inputs)
    rank = len(value.shape)
    dims: tuple[int, ...]
    if op.saved("dim") is None:
        dims = tuple(range(rank))
    elif isinstance(op.saved("dim"), int):
        dims = (op.saved_int("dim"),)
    else:
        dims = op.saved_ints("dim") or tuple(range(rank))
    keepdim = len(op.shapes[0]) == rank
    return [reduce(context, value, dims, keepdim) for _ in op.shapes]


@handles("Softmax LogSoftmax SafeSoftmax")
def _softmax(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    (value,) = known(inputs)
    dim = op.saved_int("dim") % len(value.shape)
    context.labels.freeze_value(value, f"{op.where} normalises over it", [dim])
    fields = {a: context.labels.collapse(labels, dim) for a, labels in value.fields.items() if a != dim}
    return [Labelled(value.shape, fields)]
