"""Arithmetic that skips what does not exist: the reference of the proof.

A dropped slice is NaN. Sums and products leave it out, statistics (LayerNorm, GroupNorm, mean, norm) are computed over
what is left, everything else carries it along. Written without the engine's rules, of which it is the check.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


def is_whole(tensor: Tensor) -> bool:
    """Whether a tensor holds whole numbers or truth values: only others can say that something does not exist."""
    return not (tensor.is_floating_point() or tensor.is_complex())


def _missing(tensor: Tensor, dims: Sequence[int]) -> Tensor:
    """Where everything along some dimensions is NaN (dimensions kept)."""
    gone = tensor.isnan()
    for dim in dims:
        gone = gone.all(dim=dim, keepdim=True)
    return gone


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` for matrices or batches of them, over the indices that exist in both."""
    rows, inner_a = _missing(a, [-1]), _missing(a, [-2])
    inner_b, columns = _missing(b, [-1]), _missing(b, [-2])
    result = torch.matmul(a.masked_fill(rows | inner_a, 0.0), b.masked_fill(inner_b | columns, 0.0))
    nothing = (inner_a | inner_b.transpose(-1, -2)).all(dim=-1, keepdim=True)
    return result.masked_fill(rows | columns | nothing, float("nan"))


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    *rest: Any,
) -> Tensor:
    output_padding, groups = rest
    spatial = list(range(2, x.dim()))
    gone = _missing(x, [0, *spatial])
    present = (~_missing(weight, spatial)).to(x.dtype)
    if transposed:
        rows, columns = _missing(weight, [1, *spatial]), _missing(weight, [0, *spatial])
    else:
        rows, columns = _missing(weight, [1, *spatial]), _missing(weight, [0, *spatial])
    clean = weight.masked_fill(rows | columns | _missing(weight, spatial), 0.0)
    result = aten.convolution(
        x.masked_fill(gone, 0.0), clean, bias, stride, padding, dilation, transposed, output_padding, groups
    )
    # An output channel exists if any of its terms does: the same convolution on points instead of planes.
    exists = torch.ones_like(gone, dtype=x.dtype).masked_fill(gone, 0.0)
    ones = [1] * len(spatial)
    zeros = [0] * len(spatial)
    terms = aten.convolution(exists, present, None, ones, zeros, ones, transposed, zeros, groups)
    return result.masked_fill(terms == 0, float("nan"))


def _addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    product = _matmul(a, b) * alpha
    return product if beta == 0 else product + bias * beta


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    if key.shape[:-2] != query.shape[:-2]:  # fewer key than query heads
        times = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)
    scores = _matmul(query, key.transpose(-2, -1)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    if attn_mask is not None:
        scores = scores + attn_mask
    return _matmul(_softmax(scores, -1, False), value)


def _flash_attention_for_cpu(
    query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    output = _attention(query, key, value, *args, **kwargs)
    return output, output.new_zeros(query.shape[:-1])


def _dims(tensor: Tensor, dim: Any) -> list[int]:
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return list(range(tensor.dim()))
    return [d % tensor.dim() for d in ([dim] if isinstance(dim, int) else dim)]


def _sum(x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    dims = _dims(x, dim)
    total = torch.where(x.isnan(), 0.0, x).sum(dim=dims, keepdim=True)
    total = total.masked_fill(_missing(x, dims), float("nan"))
    total = total if keepdim else total.squeeze(dims)
    return total if dtype is None else total.to(dtype)


def _count(x: Tensor, dims: Sequence[int]) -> Tensor:
    return (~x.isnan()).to(x.dtype).sum(list(dims), keepdim=True)


def _mean(x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    dims = _dims(x, dim)
    mean = _sum(x, dims, True) / _count(x, dims)
    mean = mean if keepdim else mean.squeeze(dims)
    return mean if dtype is None else mean.to(dtype)


def _variance(x: Tensor, dim: Any = None, *, correction: Any = 1, keepdim: bool = False) -> Tensor:
    dims = _dims(x, dim)
    squares = _sum((x - _mean(x, dims, True)) ** 2, dims, True)
    variance = squares / (_count(x, dims) - (1 if correction is None else correction))
    return variance if keepdim else variance.squeeze(dims)


def _deviation(x: Tensor, dim: Any = None, **kwargs: Any) -> Tensor:
    return _variance(x, dim, **kwargs).sqrt()


def _variance_and_mean(x: Tensor, dim: Any = None, *, keepdim: bool = False, **kwargs: Any) -> tuple[Tensor, Tensor]:
    return _variance(x, dim, keepdim=keepdim, **kwargs), _mean(x, dim, keepdim)


def _vector_norm(x: Tensor, order: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    dims = _dims(x, dim)
    clean = torch.where(x.isnan(), 0.0 if order is None or order >= 0 else float("inf"), x)
    norm = torch.linalg.vector_norm(clean, 2 if order is None else order, dims, True).masked_fill(
        _missing(x, dims), float("nan")
    )
    return norm if keepdim else norm.squeeze(dims)


def _extreme(fill: float) -> Callable[..., Tensor]:
    def extreme(x: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
        dims = _dims(x, dim)
        clean = torch.where(x.isnan(), fill, x)
        best = clean.amax(dims, True) if fill < 0 else clean.amin(dims, True)
        best = best.masked_fill(_missing(x, dims), float("nan"))
        return best if keepdim else best.squeeze(dims)

    return extreme


def _logsumexp(x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    dims = _dims(x, dim)
    total = torch.logsumexp(torch.where(x.isnan(), float("-inf"), x), dims, True)
    total = total.masked_fill(_missing(x, dims), float("nan"))
    return total if keepdim else total.squeeze(dims)


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    dims = list(range(x.dim() - len(shape), x.dim()))
    mean = _mean(x, dims, True)
    scale = torch.rsqrt(_variance(x, dims, correction=0, keepdim=True) + eps)
    output = (x - mean) * scale
    output = output if weight is None else output * weight
    return (output if bias is None else output + bias), mean, scale


def _rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float | None) -> tuple[Tensor, Tensor]:
    dims = list(range(x.dim() - len(shape), x.dim()))
    scale = torch.rsqrt(_mean(x * x, dims, True) + (torch.finfo(x.dtype).eps if eps is None else eps))
    output = x * scale
    return (output if weight is None else output * weight), scale


def _batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """With the batch's own statistics they are taken over what exists (instance norm, weight standardisation)."""
    if not training:
        return aten.native_batch_norm(x, weight, bias, mean, variance, training, momentum, eps)
    others = [dim for dim in range(x.dim()) if dim != 1]
    center = _mean(x, others, True)
    scale = torch.rsqrt(_variance(x, others, correction=0, keepdim=True) + eps)
    output = (x - center) * scale
    per_channel = (1, -1) + (1,) * (x.dim() - 2)
    output = output if weight is None else output * weight.reshape(per_channel)
    output = output if bias is None else output + bias.reshape(per_channel)
    return output, center.flatten(), scale.flatten()


def _group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, c: int, hxw: int, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    split = x.reshape(n, groups, -1)
    mean = _mean(split, -1, True)
    scale = torch.rsqrt(_variance(split, -1, correction=0, keepdim=True) + eps)
    output = ((split - mean) * scale).reshape(x.shape)
    per_channel = (1, c) + (1,) * (x.dim() - 2)
    output = output if weight is None else output * weight.reshape(per_channel)
    output = output if bias is None else output + bias.reshape(per_channel)
    return output, mean.squeeze(-1), scale.squeeze(-1)


def _fill(x: Tensor, *value: Any) -> Tensor:
    """What does not exist is not filled either."""
    gone = x.isnan()
    (x.fill_(*value) if value else x.zero_()).masked_fill_(gone, float("nan"))
    return x


def _pad(x: Tensor, amounts: Sequence[int], value: float = 0.0) -> Tensor:
    """What does not exist is not padded: it exists nowhere along the padded dimensions."""
    padded = [x.dim() - 1 - index // 2 for index, amount in enumerate(amounts) if amount]
    return aten.constant_pad_nd(x, amounts, value).masked_fill_(_missing(x, padded), float("nan"))


def _masked_fill(x: Tensor, mask: Tensor, value: Any) -> Tensor:
    filled = aten.masked_fill(x, mask, value)
    return torch.where(x.isnan(), x, filled) if filled.shape == x.shape else filled


def _where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A single number put in place of what does not exist does not make it exist."""
    result = torch.where(condition, a, b)
    for whole, other in ((a, b), (b, a)):
        if other.numel() == 1 and whole.is_floating_point():
            result = result.masked_fill(whole.isnan(), float("nan"))
    return result


def _trilinear(
    a: Tensor, b: Tensor, c: Tensor, first: Any, second: Any, third: Any, dims: Any, *_: Any, **__: Any
) -> Tensor:
    product = torch.ones((), dtype=a.dtype, device=a.device)
    for factor, places in ((a, first), (b, second), (c, third)):
        for dim in sorted(places):
            factor = factor.unsqueeze(dim)
        product = product * factor
    return _sum(product, dims) if dims else product


def _distances(a: Tensor, b: Tensor, order: float = 2.0, *_: Any) -> Tensor:
    return _vector_norm(a.unsqueeze(-2) - b.unsqueeze(-3), order, -1)


def _own_distances(x: Tensor, order: float = 2.0) -> Tensor:
    first, second = torch.triu_indices(len(x), len(x), 1, device=x.device)
    return _vector_norm(x[first] - x[second], order, 1)


def _weight_norm(value: Tensor, scale: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    norms = _vector_norm(value, 2, [other for other in range(value.dim()) if other != dim % value.dim()], True)
    return value * (scale / norms), norms


def _kept(function: Callable[..., Any], fill: float) -> Callable[..., Any]:
    """An operation on what exists: the rest is a number that has no effect, and does not exist in the result."""

    def compute(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        clean = torch.where(x.isnan(), fill, x)
        found = function(clean, *args, **kwargs)
        result, *positions = found if isinstance(found, (tuple, list)) else (found,)
        if result.shape == x.shape:
            gone = x.isnan()
        elif args and isinstance(args[0], int):
            gone = _missing(x, [args[0]])
            gone = gone if gone.dim() == result.dim() else gone.squeeze(args[0])
        else:
            gone = x.isnan().all()
        result = result.masked_fill(gone, float("nan"))
        return (result, *positions) if positions else result

    return compute


_softmax = _kept(aten._softmax.default, float("-inf"))


def _aminmax(x: Tensor, *, dim: int | None = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return _extreme(float("inf"))(x, dim, keepdim), _extreme(float("-inf"))(x, dim, keepdim)


def _carried(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An operation element by element that would make a number of what does not exist."""

    def carry(*args: Any, **kwargs: Any) -> Tensor:
        result = function(*args, **kwargs)
        for operand in args:
            if isinstance(operand, Tensor) and not is_whole(operand):
                result = result.masked_fill(operand.isnan(), float("nan"))
        return result

    return carry


def _placed(function: Callable[..., Tensor], dims: Sequence[int]) -> Callable[..., Tensor]:
    """An operation along positions whose result is zero where nothing is: what exists nowhere has no zeros either."""
    return lambda x, *args, **kwargs: function(x, *args, **kwargs).masked_fill(_missing(x, dims), float("nan"))


def _written(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Writing along a dimension: what exists nowhere in it, there or in what is written, does not afterwards."""

    def write(x: Tensor, dim: int, index: Any, *args: Any, **kwargs: Any) -> Tensor:
        result = function(x, dim, index, *args, **kwargs)
        for tensor in (x, *args):
            # Nothing written (an expert that no token reaches) says nothing of what exists.
            if isinstance(tensor, Tensor) and tensor.dim() == x.dim() and tensor.numel():
                gone = _missing(tensor, [dim])
                if all(a in (b, 1) for a, b in zip(gone.shape, x.shape, strict=True)):
                    result = result.masked_fill(gone, float("nan"))
        return result

    return write


def _patches(x: Tensor, *args: Any) -> Tensor:
    result = aten.im2col(x, *args)
    gone = _missing(x, [-2, -1]).squeeze(-1)
    return result.masked_fill(gone.repeat_interleave(result.shape[-2] // x.shape[-3], -2), float("nan"))


def _from_patches(x: Tensor, *args: Any) -> Tensor:
    result = aten.col2im(x, *args)
    gone = _missing(x.unflatten(-2, (result.shape[-3], -1)), [-2, -1])
    return result.masked_fill(gone, float("nan"))


def _diagonal_matrix(x: Tensor, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Tensor:
    result = aten.diag_embed(x, offset, dim1, dim2)
    if offset:
        return result
    gone = x.isnan()
    cross = (gone.unsqueeze(-1) | gone.unsqueeze(-2)).movedim((-2, -1), (dim1, dim2))
    return result.masked_fill(cross, float("nan"))


def _embedding_bag(weight: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    result, *rest = aten._embedding_bag(weight, *args, **kwargs)
    return (result.masked_fill(_missing(weight, [0]), float("nan")), *rest)


def _loss(function: Callable[..., Tensor], place: int) -> Callable[..., Tensor]:
    """A loss over what exists; ``place`` is where the argument stands that says how it is summed up."""

    def compute(*args: Any) -> Tensor:
        operands = (*args[:place], *(None,) * (place - len(args)))
        each = function(*operands, 0, *args[place + 1 :])
        how = args[place] if len(args) > place else 1
        return each if how == 0 else _mean(each) if how == 1 else _sum(each)

    return compute


def _in_place(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, *args, **kwargs: x.copy_(function(x, *args, **kwargs))


_RULES: dict[Any, Callable[..., Any]] = {
    aten.constant_pad_nd.default: _pad,
    aten.masked_fill.Scalar: _masked_fill,
    aten.masked_fill.Tensor: _masked_fill,
    aten.where.self: _where,
    aten.fill_.Scalar: _fill,
    aten.fill_.Tensor: _fill,
    aten.zero_.default: _fill,
    aten.mm.default: _matmul,
    aten.bmm.default: _matmul,
    aten.mv.default: lambda a, b: _matmul(a, b[:, None])[:, 0],
    aten.dot.default: lambda a, b: _matmul(a[None], b[:, None])[0, 0],
    aten.addmm.default: _addmm,
    aten.baddbmm.default: _addmm,
    aten.convolution.default: _convolution,
    aten._scaled_dot_product_flash_attention_for_cpu.default: _flash_attention_for_cpu,
    aten.sum.dim_IntList: _sum,
    aten.sum.default: _sum,
    aten.mean.dim: _mean,
    aten.mean.default: _mean,
    aten.var.correction: _variance,
    aten.std.correction: _deviation,
    aten.var_mean.correction: _variance_and_mean,
    aten.linalg_vector_norm.default: _vector_norm,
    aten.norm.ScalarOpt_dim: _vector_norm,
    aten.norm.Scalar: _vector_norm,
    aten.amax.default: _extreme(float("-inf")),
    aten.amin.default: _extreme(float("inf")),
    aten.logsumexp.default: _logsumexp,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_group_norm.default: _group_norm,
    aten.addmv.default: lambda x, a, b, **kwargs: _addmm(x[..., None], a, b[:, None], **kwargs)[:, 0],
    aten.addbmm.default: lambda x, a, b, *, beta=1, alpha=1: x * beta + _sum(_matmul(a, b), 0) * alpha,
    aten.vdot.default: lambda a, b: _matmul(a.conj()[None], b[:, None])[0, 0],
    aten._trilinear.default: _trilinear,
    aten._cdist_forward.default: _distances,
    aten._euclidean_dist.default: _distances,
    aten._pdist_forward.default: _own_distances,
    aten.dist.default: lambda a, b, order=2: _vector_norm(a - b, order),
    aten._weight_norm_interface.default: _weight_norm,
    aten._embedding_bag.default: _embedding_bag,
    aten.nansum.default: _sum,
    aten.std_mean.correction: lambda x, dim=None, **kwargs: (
        _deviation(x, dim, **kwargs),
        _mean(x, dim, kwargs.get("keepdim", False)),
    ),
    aten.prod.default: _kept(aten.prod.default, 1.0),
    aten.prod.dim_int: _kept(aten.prod.dim_int, 1.0),
    aten.max.default: _kept(aten.max.default, float("-inf")),
    aten.max.dim: _kept(aten.max.dim, float("-inf")),
    aten.min.default: _kept(aten.min.default, float("inf")),
    aten.min.dim: _kept(aten.min.dim, float("inf")),
    aten.aminmax.default: _aminmax,
    aten._softmax.default: _softmax,
    aten._log_softmax.default: _kept(aten._log_softmax.default, float("-inf")),
    aten._safe_softmax.default: _kept(aten._safe_softmax.default, float("-inf")),
    aten.cumsum.default: _kept(aten.cumsum.default, 0.0),
    aten.cumprod.default: _kept(aten.cumprod.default, 1.0),
    aten.logcumsumexp.default: _kept(aten.logcumsumexp.default, float("-inf")),
    aten.cummax.default: _kept(aten.cummax.default, float("-inf")),
    aten.cummin.default: _kept(aten.cummin.default, float("inf")),
    aten.im2col.default: _patches,
    aten.col2im.default: _from_patches,
    aten.diag_embed.default: _diagonal_matrix,
    aten.mse_loss.default: _loss(aten.mse_loss.default, 2),
    aten.smooth_l1_loss.default: _loss(aten.smooth_l1_loss.default, 2),
    aten.huber_loss.default: _loss(aten.huber_loss.default, 2),
    aten.binary_cross_entropy_with_logits.default: _loss(aten.binary_cross_entropy_with_logits.default, 4),
    aten.masked_fill_.Scalar: _in_place(_masked_fill),
    aten.masked_fill_.Tensor: _in_place(_masked_fill),
}
for _packet, _space in (
    (aten.grid_sampler_2d, (-2, -1)),
    (aten.grid_sampler_3d, (-3, -2, -1)),
    (aten.max_unpool2d, (-2, -1)),
    (aten.max_unpool3d, (-3, -2, -1)),
    (aten.tril, (-2, -1)),
    (aten.triu, (-2, -1)),
):
    _RULES[_packet.default] = _placed(_packet.default, _space)
for _name in (
    "sign",
    "sgn",
    "nan_to_num",
    "pow",
    "fmax",
    "fmin",
    "copysign",
    "heaviside",
    "hypot",
    "igamma",
    "igammac",
):
    _packet = getattr(aten, _name)
    _RULES.update({getattr(_packet, o): _carried(getattr(_packet, o)) for o in _packet.overloads() if "out" not in o})
for _name in ("index_add", "index_copy", "index_fill", "index_reduce", "scatter", "scatter_add", "scatter_reduce"):
    _packet, _writing = getattr(aten, _name), getattr(aten, f"{_name}_")
    for _overload in _writing.overloads():
        if _overload in _packet.overloads():
            _rule = _written(getattr(_packet, _overload))
            _RULES.update({getattr(_packet, _overload): _rule, getattr(_writing, _overload): _in_place(_rule)})
if hasattr(aten, "_fused_rms_norm"):
    _RULES[aten._fused_rms_norm.default] = _rms_norm


def _leaky(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.where(x > 0, x, 0.3 * x)


# Activations that are flat somewhere: a unit that is dead there on the proof's few inputs would hide a wrong cut of it.
_FLAT = (aten.relu, aten.threshold, aten.hardtanh, aten.hardswish, aten.hardsigmoid, aten.relu6)
_NEVER_FLAT: dict[Any, Callable[..., Any]] = {
    **{packet.default: _leaky for packet in _FLAT if hasattr(packet, "default")},
    **{
        packet.default: _in_place(_leaky)
        for packet in (aten.relu_, aten.threshold_, aten.hardtanh_, aten.hardswish_, aten.hardsigmoid_, aten.relu6_)
        if hasattr(packet, "default")
    },
}


# Dropout that a forward insists on would draw other numbers for the smaller tensors.
_NO_DROPOUT: dict[Any, Callable[..., Any]] = {
    aten.bernoulli_.float: lambda x, p=0.5, **_: x.fill_(p),
    aten.native_dropout.default: lambda x, *_: (x.clone(), torch.ones_like(x, dtype=torch.bool)),
}


# Constants (what needs no gradient: neither weights nor inputs nor what follows from them) exist where that exists
# which they are joined to: the zeros that a sequence is padded with have as many channels as the sequence.


def _copy(target: Tensor, source: Tensor, *args: Any) -> Tensor:
    gone = target.isnan() if not source.requires_grad and not is_whole(target) else None
    target = target.copy_(source, *args)
    return target if gone is None else target.masked_fill_(gone, float("nan"))


def _all_but(mask: Tensor, axis: int, *, every: bool) -> Tensor:
    """Whether something holds for every (or any) element of each index of an axis."""
    for dim in range(mask.dim()):
        if dim != axis:
            mask = mask.all(dim, keepdim=True) if every else mask.any(dim, keepdim=True)
    return mask


def _join_constants(parts: Sequence[Tensor], dim: int = 0) -> Sequence[Tensor]:
    """The parts of a concatenation: along the other axes, what is missing in all others is missing in constants."""
    full = [part for part in parts if part.shape != (0,)]
    known = [part for part in full if part.requires_grad]
    if not known or len(known) == len(full) or any(is_whole(part) for part in full):
        return parts
    rank = full[0].dim()
    gone = torch.zeros((), dtype=torch.bool)
    for axis in set(range(rank)) - {dim % rank}:
        missing = [_all_but(part.isnan(), axis, every=True) for part in known]
        gone = gone | torch.stack(missing).all(0)
    return [p if p.requires_grad or p.shape == (0,) else p.masked_fill(gone, float("nan")) for p in parts]


def _constant_base(target: Any) -> Tensor | None:
    """The constant of which a tensor that is written to is a view."""
    if not isinstance(target, Tensor) or is_whole(target) or not target._is_view():
        return None
    base = target._base
    return base if base is not None and not base.requires_grad else None


def _settle_constant(base: Tensor, view: Tensor) -> None:
    """An index of a constant of which everything just written is missing is missing in all of it."""
    written = torch.zeros(base.shape, dtype=torch.bool, device=base.device)
    torch.as_strided(written, view.shape, view.stride(), view.storage_offset()).fill_(True)
    missing = base.isnan() | ~written
    for axis in range(base.dim()):
        gone = _all_but(missing, axis, every=True) & _all_but(written, axis, every=False)
        if bool(gone.any()):
            base.masked_fill_(gone, float("nan"))


_RULES[aten.copy_.default] = _copy

# New memory may hold NaN by chance, which would not exist.
_UNSET = (aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default, aten.empty_strided.default)


_LOWER = {torch.float64: (torch.float32, torch.float16, torch.bfloat16), torch.float32: (torch.float16, torch.bfloat16)}


class ProofArithmetic(TorchDispatchMode):
    """The arithmetic of a proof: in one precision, without dropout, on request skipping what does not exist.

    A forward that casts to a lower precision (RMSNorm in many language models) would round away what it is to show.
    """

    def __init__(self, dtype: torch.dtype, masked: bool, perturbed: bool) -> None:
        super().__init__()
        self._dtype = dtype
        self._rules = {**_NO_DROPOUT, **(_RULES if masked else {}), **(_NEVER_FLAT if perturbed else {})}
        self._masked = masked

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("dtype") in _LOWER[self._dtype]:
            kwargs = {**kwargs, "dtype": self._dtype}
        if func in _UNSET:
            return func(*args, **kwargs).zero_()
        if self._masked and func is aten.cat.default:
            args = (_join_constants(*args), *args[1:])
        target: Any = args[0] if self._masked and args and func._schema.is_mutable else None
        filled = _constant_base(target)
        rule = self._rules.get(func)
        floating = any(isinstance(value, Tensor) and not is_whole(value) for value in args)
        result = rule(*args, **kwargs) if rule is not None and floating else func(*args, **kwargs)
        if filled is not None:
            _settle_constant(filled, target)
        return result
