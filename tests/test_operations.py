"""Every operation between two layers: the channels stay free where the maths allows it, and are frozen by name else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from nets import CASES, OverKept, conv, randomise
from oracle import assert_equals_masked
from torch import Tensor, nn
from torch.nn import functional as F

from cleanai import RandomImportance, StructuredPruner, analyze_model

SETTINGS: tuple[dict[str, Any], ...] = (
    {"pruning_ratio": 0.3, "importance": RandomImportance(1)},
    {"pruning_ratio": 0.65, "importance": "magnitude"},
    {"pruning_ratio": 0.5, "global_pruning": True, "importance": RandomImportance(2)},
)
Function = Callable[[Tensor], Tensor]


class Between(nn.Module):
    """A convolution, a function of its eight channels, and a layer that reads what comes out of it.

    Every position counts by another weight, so that none can stand in for another.
    """

    def __init__(self, function: Function, width: int) -> None:
        super().__init__()
        self.first: nn.Module = conv(3, 8)
        self.function, self.last = function, nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.function(torch.tanh(self.first(x)))
        if x.dim() > 2:
            x = x.flatten(2)
            x = (x * torch.linspace(0.5, 1.5, x.shape[2], dtype=x.dtype, device=x.device)).sum(2)
        return self.last(x)


def build(function: Function) -> tuple[Between, Tensor]:
    """The network around a function, with random parameters, and an input."""
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 8, 8)
    width = function(torch.rand(2, 8, 8, 8)).shape[1]
    return randomise(Between(function, width)), inputs


def assert_pruned_right(function: Function, units: int, sizes: dict[str, int] | None = None) -> None:
    """The channels of the first layer form a group of so many units, and go rightly at every ratio."""
    model, inputs = build(function)
    groups = {group.name: group.size for group in analyze_model(model, inputs).groups if group.size > 1}
    assert groups == (sizes or {"first": units})
    kept_like = {"function": ("first.weight", 0)} if isinstance(function, OverKept) else {}
    for setting in SETTINGS:
        pruner = StructuredPruner(model, inputs, **setting)
        pruned = pruner.prune()
        assert pruner.verification is not None and pruner.verification.passed
        assert pruner.plan is not None and not pruner.plan.is_empty
        assert_equals_masked(model, pruned, pruner.plan, inputs, kept_like)


def positions(*shape: int, below: int, device: Any) -> Tensor:
    """Whole numbers in a fixed disorder."""
    count = torch.Size(shape).numel()
    return (torch.arange(count, device=device) * 7 % below).reshape(shape)


def expanded(x: Tensor, below: int, dim: int, size: int) -> Tensor:
    """One list of positions along a dimension, the same for every index of the others."""
    shape = [1] * x.dim()
    shape[dim] = size
    return positions(*shape, below=below, device=x.device).expand(*x.shape[:dim], size, *x.shape[dim + 1 :])


def _largest(x: Tensor, values: Tensor, places: Tensor) -> Tensor:
    return values + x.flip(3).gather(2, places)


def _pick_largest(x: Tensor, values: Tensor, places: Tensor) -> Tensor:
    return values + x.flip(2).gather(1, places)


def _moved_index(x: Tensor) -> Tensor:
    index = torch.arange(8, device=x.device)
    y = x[:, index]
    index += 1  # overwrites what autograd saved
    return y


def _causal(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x, is_causal=True)


def cast(x: Tensor, *shape: int) -> Tensor:
    """Fixed numbers in the precision of a tensor."""
    count = torch.Size(shape).numel()
    return torch.linspace(-1.0, 1.0, count, dtype=x.dtype, device=x.device).reshape(shape)


# ------------------------------------------------------------------------------------------------ over positions

OVER_SPACE: dict[str, Function] = {
    "cumsum": lambda x: x.cumsum(2),
    "cumprod": lambda x: x.cumprod(2),
    "logcumsumexp": lambda x: x.logcumsumexp(3),
    "cummax": lambda x: x.cummax(2)[0],
    "sort": lambda x: x.sort(2)[0],
    "topk": lambda x: x.topk(3, 2)[0],
    "gather by the places of the largest": lambda x: _largest(x, *x.topk(3, 2)),
    "kthvalue": lambda x: x.kthvalue(3, 2)[0],
    "median": lambda x: x.median(2)[0],
    "mode": lambda x: x.mode(3)[0],
    "softmax": lambda x: x.softmax(2),
    "softmin": lambda x: F.softmin(x, 3),
    "log_softmax": lambda x: x.log_softmax(2),
    "logsumexp": lambda x: x.logsumexp((2, 3)),
    "gumbel softmax": lambda x: x + 0 * F.gumbel_softmax(x, dim=2),
    "norm": lambda x: x.norm(dim=(2, 3)),
    "normalize": lambda x: F.normalize(x, dim=2),
    "renormalised by the maximum": lambda x: x / x.amax((2, 3), keepdim=True),
    "variance": lambda x: torch.var_mean(x, (2, 3))[0],
    "aminmax": lambda x: torch.aminmax(x, dim=2)[1],
    "prod": lambda x: x.prod(2),
    "nansum": lambda x: x.nansum(2),
    "cosine similarity": lambda x: F.cosine_similarity(x, x.flip(3), dim=2),
    "diff": lambda x: x.diff(dim=2),
    "trapezoid": lambda x: torch.trapezoid(x, dim=2),
    "gather": lambda x: x.gather(2, expanded(x, 8, 2, 4)),
    "index_select": lambda x: x.index_select(3, positions(5, below=8, device=x.device)),
    "index": lambda x: x[..., positions(5, below=8, device=x.device)],
    "index with two tensors": lambda x: x[
        :, :, positions(5, below=8, device=x.device), positions(5, below=7, device="cpu").to(x.device)
    ],
    "index around the channels": lambda x: x[
        positions(2, below=2, device=x.device), :, positions(2, below=8, device=x.device)
    ],
    "index with a mask": lambda x: x[..., torch.arange(8, device=x.device) % 3 > 0],
    "index with a mask of two dimensions": lambda x: x[
        :, :, torch.ones(8, 8, dtype=torch.bool, device=x.device).triu()
    ],
    "index_add": lambda x: x.index_add(2, positions(3, below=8, device=x.device), x[:, :, :3]),
    "index_add to zeros": lambda x: x.new_zeros(x.shape).index_add(
        2, positions(3, below=8, device=x.device), x[:, :, :3]
    ),
    "index_copy": lambda x: x.index_copy(3, positions(3, below=8, device=x.device), x[..., :3] * 2),
    "index_fill": lambda x: x.index_fill(2, positions(3, below=8, device=x.device), 0.5),
    "index_put": lambda x: (
        x.transpose(1, 2).index_put((torch.arange(2, device=x.device),), x[:, None, :, 0] * 2).transpose(1, 2)
    ),
    "index_put of a number": lambda x: (
        x.movedim(2, 0).index_put((positions(2, below=8, device=x.device),), cast(x, 1)).movedim(0, 2)
    ),
    "scatter": lambda x: x.scatter(2, expanded(x, 8, 2, 4), x[:, :, :4] * 2),
    "scatter of a number": lambda x: x.scatter(2, expanded(x, 8, 2, 4), 0.5),
    "scatter_add": lambda x: x.new_zeros(x.shape).scatter_add(2, expanded(x, 8, 2, 8), x),
    "scatter_reduce": lambda x: x.scatter_reduce(2, expanded(x, 8, 2, 8), x, "mean"),
    "select_scatter": lambda x: x.select_scatter(x[:, :, 1] * 2, 2, 3),
    "slice_scatter": lambda x: x.slice_scatter(x[:, :, :2] * 2, 2, 3, 5),
    "masked_fill": lambda x: x.masked_fill(torch.arange(8, device=x.device) > 5, 0.25),
    "where": lambda x: torch.where(torch.arange(8, device=x.device) > 5, x, x * 0.5),
    "where a number": lambda x: torch.where(torch.arange(8, device=x.device) > 5, x, 0.25),
    "pad circular": lambda x: F.pad(x, (1, 2, 1, 0), mode="circular"),
    "pad reflect": lambda x: F.pad(x, (1, 2, 1, 0), mode="reflect"),
    "pad replicate": lambda x: F.pad(x, (1, 2, 1, 0), mode="replicate"),
    "pad a vector": lambda x: F.pad(x[:, :, 0], (1, 2), mode="reflect"),
    "pad a volume": lambda x: F.pad(x[:, :, None], (1, 2, 1, 0, 0, 0), mode="replicate"),
    "crop": lambda x: F.pad(x, (-1, -1, 0, 2)),
    "roll": lambda x: x.roll((2, 1), (2, 3)),
    "flip": lambda x: x.flip(2),
    "rot90": lambda x: x.rot90(1, (2, 3)),
    "rot90 thrice": lambda x: x.rot90(3, (2, 3)),
    "tril": lambda x: x.tril(),
    "triu": lambda x: x.triu(1),
    "diagonal": lambda x: x.diagonal(0, 2, 3),
    "diagonal with offset": lambda x: x.diagonal(1, 2, 3),
    "diag_embed": lambda x: x.diag_embed(),
    "einsum diagonal": lambda x: torch.einsum("bcii->bci", x),
    "movedim": lambda x: x.movedim(1, -1).movedim(-1, 1),
    "swapaxes": lambda x: x.swapaxes(2, 3).mT.transpose(0, 1).movedim(0, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 2),
    "repeat_interleave by a tensor": lambda x: x.repeat_interleave(
        torch.tensor([1, 2, 0, 1, 1, 1, 1, 1], device=x.device), 2, output_size=8
    ),
    "tile": lambda x: x.tile(1, 1, 2, 1),
    "unfold": lambda x: x.unfold(2, 3, 2),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest-exact": lambda x: F.interpolate(x, scale_factor=1.5, mode="nearest-exact"),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bicubic": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "antialias": lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True),
    "area": lambda x: F.interpolate(x, scale_factor=0.5, mode="area"),
    "linear": lambda x: F.interpolate(x[:, :, 0], scale_factor=2, mode="linear"),
    "trilinear": lambda x: F.interpolate(x[:, :, None], scale_factor=2, mode="trilinear"),
    "grid_sample": lambda x: F.grid_sample(x, cast(x, 2, 4, 4, 2) * 1.5, align_corners=False),
    "grid_sample of a volume": lambda x: F.grid_sample(x[:, :, None], cast(x, 2, 2, 4, 4, 3), align_corners=False),
    "max pooling": lambda x: F.max_pool2d(x, 2, padding=1),
    "max pooling of a vector": lambda x: F.max_pool1d(x[:, :, 0], 2),
    "max pooling of a volume": lambda x: F.max_pool3d(x[:, :, None], (1, 2, 2)),
    "average pooling": lambda x: F.avg_pool2d(x, 3, 2, padding=1),
    "average pooling of a vector": lambda x: F.avg_pool1d(x[:, :, 0], 2),
    "lp pooling": lambda x: F.lp_pool2d(x, 2.0, 2),
    "adaptive pooling": lambda x: F.adaptive_avg_pool2d(x, 3),
    "adaptive pooling of a vector": lambda x: F.adaptive_avg_pool1d(x[:, :, 0], 3),
    "adaptive maximum": lambda x: F.adaptive_max_pool2d(x, 3),
    "adaptive maximum of a volume": lambda x: F.adaptive_max_pool3d(x[:, :, None], (1, 3, 3)),
    "unpooling": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), [2, 2]),
    "unpooling of a vector": lambda x: F.max_unpool1d(*F.max_pool1d(x[:, :, 0], 2, return_indices=True), [2]),
    "unpooling of a volume": lambda x: F.max_unpool3d(
        *F.max_pool3d(x[:, :, None], (1, 2, 2), return_indices=True), [1, 2, 2]
    ),
    "Fourier transform": lambda x: torch.fft.fft2(x).abs(),
    "inverse Fourier transform": lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 0.5),
    "channels last": lambda x: F.glu(x.permute(0, 2, 3, 1).flatten(1, 2).unflatten(1, (8, 8)), 2).permute(0, 3, 1, 2),
    "complex numbers": lambda x: torch.view_as_complex(x.unflatten(3, (4, 2))).abs(),
    "complex product": lambda x: torch.view_as_real(
        torch.view_as_complex(x.unflatten(3, (4, 2))) * torch.polar(cast(x, 4), cast(x, 4))
    ),
    "polar": lambda x: torch.polar(x, x * 2).imag,
    "conjugate": lambda x: (torch.complex(x, x * 2).conj() * torch.complex(x, x * 3)).real,
    "angle": lambda x: torch.complex(x, x * x).angle(),
    "layer norm": lambda x: F.layer_norm(x, (8,)),
    "batch of matrices": lambda x: x @ x.mT,
    "baddbmm": lambda x: torch.baddbmm(x[:, :, 0], x[:, :, 1], x[:, :, 2].mT @ x[:, :, 3]),
    "einsum over space": lambda x: torch.einsum("bchw,bcvw->bchv", x, x.flip(2)),
}


@pytest.mark.parametrize("name", OVER_SPACE)
def test_channels_are_free_where_an_operation_works_on_positions(name: str) -> None:
    assert_pruned_right(OVER_SPACE[name], 8)


# ------------------------------------------------------------------------------------------------- over the channels

OVER_CHANNELS: dict[str, Function] = {
    "softmax": lambda x: x.softmax(1),
    "softmin": lambda x: F.softmin(x, 1),
    "log_softmax": lambda x: x.log_softmax(1).exp(),
    "logsumexp": lambda x: x.logsumexp(1, keepdim=True),
    "cumsum": lambda x: x.cumsum(1),
    "cumprod": lambda x: x.cumprod(1),
    "logcumsumexp": lambda x: x.logcumsumexp(1),
    "cummax": lambda x: x.cummax(1)[0],
    "cummin": lambda x: x.cummin(1)[0],
    "sum": lambda x: x.sum(1, keepdim=True),
    "nansum": lambda x: x.nansum(1, keepdim=True),
    "nanmean": lambda x: x.nanmean(1, keepdim=True),
    "mean over everything": lambda x: x.mean((1, 2, 3))[:, None],
    "prod": lambda x: (2 + x).prod(1, keepdim=True),
    "var": lambda x: x.var(1, keepdim=True),
    "var of everything": lambda x: x.flatten(1).var(1)[:, None],
    "std": lambda x: x.std(1, correction=0, keepdim=True),
    "std_mean": lambda x: torch.cat(torch.std_mean(x, 1, keepdim=True), 1),
    "var_mean": lambda x: torch.cat(torch.var_mean(x, 1, keepdim=True), 1),
    "amax": lambda x: x.amax(1, keepdim=True),
    "amin": lambda x: x.amin((1, 2), keepdim=True),
    "max": lambda x: x.max(1, keepdim=True)[0],
    "min": lambda x: x.min(1, keepdim=True)[0],
    "aminmax": lambda x: torch.cat(torch.aminmax(x, dim=1, keepdim=True), 1),
    "norm": lambda x: x.norm(dim=1, keepdim=True),
    "norm of order 1": lambda x: x.norm(1, dim=1, keepdim=True),
    "largest norm": lambda x: x.norm(float("inf"), dim=1, keepdim=True),
    "smallest norm": lambda x: torch.linalg.vector_norm(x, float("-inf"), dim=1, keepdim=True),
    "normalize": lambda x: F.normalize(x, dim=1),
    "normalize with order 1": lambda x: F.normalize(x, p=1.0, dim=1),
    "channels by their maximum": lambda x: x / x.abs().amax(1, keepdim=True),
    "layer norm": lambda x: F.layer_norm(x.movedim(1, -1), (x.shape[1],)).movedim(-1, 1),
    "layer norm of everything": lambda x: F.layer_norm(x, x.shape[1:]),
    "rms norm": lambda x: F.rms_norm(x.movedim(1, -1), (x.shape[1],)).movedim(-1, 1),
    "group norm": lambda x: F.group_norm(x, 1),
    "cosine similarity": lambda x: F.cosine_similarity(x, x.flip(2), dim=1)[:, None],
    "pairwise distance": lambda x: F.pairwise_distance(x.movedim(1, -1), x.flip(2).movedim(1, -1))[:, None],
    "distances": lambda x: torch.cdist(x[:, :, 0].mT, x[:, :, 1].mT),
    "distances by products": lambda x: torch.cdist(
        x.flatten(2).mT, x.flatten(2).mT, compute_mode="use_mm_for_euclid_dist"
    )[:, :8],
    "distances of order 1": lambda x: torch.cdist(x[:, :, 0].mT, x[:, :, 1].mT, p=1.0),
    "distances among themselves": lambda x: F.pdist(x[:, :, 0, 0]).expand(2, 1),
    "distance": lambda x: torch.dist(x, x.flip(2)).expand(2, 1),
    "Gram matrix": lambda x: x.flatten(2).mT @ x.flatten(2),
    "inner product": lambda x: torch.linalg.vecdot(x, x.flip(2), dim=1)[:, None],
    "dot": lambda x: torch.dot(x[0, :, 0, 0], x[1, :, 1, 1]).expand(2, 1),
    "vdot": lambda x: torch.vdot(x[0, :, 0, 0], x[1, :, 1, 1]).expand(2, 1),
    "mv": lambda x: (x[0, :, 0].mT @ x[1, :, 0, 0]).expand(2, 8),
    "addmv": lambda x: torch.addmv(x[0].mean((0, 1)), x[0, :, 0].mT, x[1, :, 0, 0]).expand(2, 8),
    "addbmm": lambda x: torch.addbmm(x.mean((0, 1)), x[:, :, 0].mT, x[:, :, 1]).expand(2, 8, 8),
    "tensordot": lambda x: torch.tensordot(x, x, dims=([1, 2], [1, 2])).movedim(2, 1)[:, 0],
    "einsum": lambda x: torch.einsum("bchw,bcvw->bhv", x, x.flip(2)),
    "mean squared error": lambda x: F.mse_loss(x, x.flip(2)).expand(2, 1),
    "smooth error": lambda x: F.smooth_l1_loss(x, x.flip(2), reduction="sum").expand(2, 1),
    "Huber's error": lambda x: F.huber_loss(x, x.flip(2), reduction="none").sum(1, keepdim=True),
    "cross entropy of each channel": lambda x: F.binary_cross_entropy_with_logits(x, x.sigmoid()).expand(2, 1),
    "matrix norm": lambda x: torch.linalg.matrix_norm(x.movedim(1, 2))[..., None],
    "attention over channels": lambda x: F.scaled_dot_product_attention(x.flatten(2), x.flatten(2), x.flatten(2)),
    "attention over channels by four heads": lambda x: F.scaled_dot_product_attention(
        *(x.unflatten(2, (4, 2)).permute(0, 2, 1, 3, 4).flatten(3),) * 3
    ).permute(0, 2, 1, 3),
    "transposed attention": lambda x: (x.flatten(2) @ x.flatten(2).mT).softmax(-1) @ x.flatten(2),
    "linear attention": lambda x: (x.flatten(2).softmax(1).mT @ (x.flatten(2).softmax(2) @ x.flatten(2).mT)).mT,
}


@pytest.mark.parametrize("name", OVER_CHANNELS)
def test_channels_are_free_where_an_operation_is_one_over_what_is_kept(name: str) -> None:
    assert_pruned_right(OverKept(OVER_CHANNELS[name]), 8)


# ------------------------------------------------------------------------------------------------ element by element

ONE_BY_ONE: dict[str, list[Callable[..., Tensor]]] = {
    "activations": [
        *(F.celu, F.selu, F.elu, F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid, F.hardtanh, F.relu6),
        *(F.leaky_relu, F.rrelu, F.softplus, F.softsign, F.tanhshrink, F.hardshrink, F.softshrink, F.logsigmoid),
        lambda x: F.threshold(x, 0.1, 0.2),
        lambda x: F.prelu(x, x.new_tensor([0.3])),
        lambda x: F.dropout(x, 0.5, training=False),
        lambda x: F.relu(x.clone(), inplace=True),
    ],
    "functions of one number": [
        *(torch.abs, torch.asin, torch.asinh, torch.atan, torch.ceil, torch.cos, torch.cosh, torch.deg2rad),
        *(torch.erf, torch.erfc, torch.exp, torch.exp2, torch.expm1, torch.fix, torch.floor, torch.frac, torch.neg),
        *(torch.nan_to_num, torch.positive, torch.rad2deg, torch.round, torch.sigmoid, torch.sign, torch.sgn),
        *(torch.sin, torch.sinc, torch.sinh, torch.square, torch.tan, torch.tanh, torch.trunc),
        *(lambda x: torch.acosh(x + 2), lambda x: torch.atanh(x / 2), lambda x: torch.acos(x / 2)),
        *(lambda x: x**2, lambda x: x**0, lambda x: 2**x, lambda x: 1.5 - x, lambda x: 1 / (x + 2)),
        *(lambda x: x.clamp(-0.5, 0.5), lambda x: x.clamp_min(-0.2), lambda x: x.clamp_max(0.2)),
        *(lambda x: x.float().to(x.dtype), lambda x: x.contiguous().clone(), lambda x: torch.frexp(x + 2)[0]),
    ],
    "functions of a positive number": [
        *(torch.log, torch.log2, torch.log10, torch.log1p, torch.sqrt, torch.rsqrt, torch.reciprocal, torch.logit),
        *(torch.lgamma, torch.digamma, torch.erfinv, torch.special.entr, torch.special.erfcx, torch.special.i0),
        *(torch.special.i0e, torch.special.i1, torch.special.i1e, torch.special.log_ndtr, torch.special.ndtr),
        *(torch.special.ndtri, torch.angle),
        *(lambda x: torch.polygamma(1, x), lambda x: torch.mvlgamma(x + 3, 2)),
    ],
    "functions of two numbers": [
        *(torch.add, torch.sub, torch.mul, torch.maximum, torch.minimum, torch.fmax, torch.fmin, torch.atan2),
        *(torch.hypot, torch.copysign, torch.logaddexp, torch.logaddexp2, torch.nextafter, torch.rsub),
    ],
    "functions of two positive numbers": [
        *(torch.div, torch.pow, torch.fmod, torch.remainder, torch.xlogy, torch.float_power, torch.ldexp),
        *(torch.special.xlog1py,),
        lambda x, y: torch.special.zeta(x + 2, y),
    ],
    "functions of three": [
        lambda x, y: torch.addcmul(x, y, x),
        lambda x, y: torch.addcdiv(x, x, y + 3),
        lambda x, y: torch.lerp(x, y, x),
        lambda x, y: torch.lerp(x, y, 0.3),
        lambda x, y: x.clamp(y - 1, y),
        lambda x, y: torch.clamp_min(x, y) + torch.clamp_max(x, y),
        lambda x, y: torch.polar(x, y).real + torch.complex(x, y).imag,
    ],
}


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_channels_are_free_where_an_operation_works_element_by_element(name: str) -> None:
    functions = ONE_BY_ONE[name]

    def all_of_them(x: Tensor) -> Tensor:
        x = 0.5 + 0.4 * x if "positive" in name else x
        two = "one" not in name and "of a" not in name and name != "activations"
        results = [function(x, x.flip(2) * 0.9) if two else function(x) for function in functions]
        return torch.stack([result.to(x.dtype) for result in results]).tanh().sum(0)

    assert_pruned_right(all_of_them, 8)


# ---------------------------------------------------------------------------------------------- channels moved about

MOVED: dict[str, tuple[Function, int]] = {
    "glu": (lambda x: F.glu(x, 1), 4),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), 2),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2), 8),
    "there and back": (lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2), 2),
    "channel_shuffle": (lambda x: F.channel_shuffle(x, 2), 4),
    "unfold": (lambda x: F.unfold(x, 3, padding=1), 8),
    "unfold of an image": (lambda x: F.unfold(x[0], 3)[None], 8),
    "fold": (lambda x: F.fold(x.flatten(2)[..., :49], (8, 8), 2), 2),
    "unfold and fold": (lambda x: F.fold(F.unfold(x, 2, stride=2), (8, 8), 2, stride=2), 8),
    "unsafe_chunk": (lambda x: torch.mul(*x.unsafe_chunk(2, 1)), 4),
    "repeat_interleave": (lambda x: x.repeat_interleave(2, 1), 8),
    "tile": (lambda x: x.tile(1, 2, 1, 1), 8),
    "diag_embed": (lambda x: x.mean((2, 3)).diag_embed().square().sum(2), 8),
    "diagonal of a Gram matrix": (lambda x: (x.flatten(2) @ x.flatten(2).mT).diagonal(0, 1, 2), 8),
    "einsum diagonal of a Gram matrix": (lambda x: torch.einsum("bchw,bchw->bc", x, x.flip(2)), 8),
    "rot90": (lambda x: x.rot90(2, (1, 2)), 8),
    "rot90 of channels and rows": (lambda x: x.rot90(1, (1, 2)).movedim(2, 1), 8),
    "outer products": (lambda x: torch.einsum("bchw,bdhw->bcd", x, x).square().sum(2), 8),
    "outer product": (lambda x: torch.outer(x[0, :, 0, 0], x[1, :, 1, 1]).sum(1)[None], 8),
    "addr": (lambda x: torch.addr(x[0, :, 0], x[0, :, 1, 1], x[0].sum((0, 1)))[None], 8),
    "meshgrid": (lambda x: torch.mul(*torch.meshgrid(x[0, :, 0, 0], x[1, :, 1, 1], indexing="ij")).sum(1)[None], 8),
    "dstack": (lambda x: torch.dstack([x.flatten(2), x.flatten(2)]), 8),
    "stacked and mixed": (lambda x: torch.stack([x, x * 2], 2).flatten(1, 2), 8),
    "bilinear form": (lambda x: F.bilinear(x.mean((2, 3)), x.amax((2, 3)), x[:, :, :1].mean(3) * x[0, :, 0, 0]), 8),
    "channels as complex numbers": (
        lambda x: torch.view_as_complex(x.unflatten(1, (-1, 2)).movedim(2, -1).contiguous()).abs(),
        4,
    ),
    "channels as rows": (lambda x: F.pixel_unshuffle(x.movedim(1, 2), 2).movedim(2, 1), 4),
    "affine_grid": (
        lambda x: F.grid_sample(
            x, F.affine_grid(cast(x, 2, 2, 3), [2, 8, 4, 4], align_corners=False), align_corners=False
        ),
        8,
    ),
}


@pytest.mark.parametrize("name", MOVED)
def test_channels_are_free_where_they_are_moved_about(name: str) -> None:
    function, units = MOVED[name]
    assert_pruned_right(function, units)


# --------------------------------------------------------------------------------------------------- what must stay

MUST_STAY: dict[str, tuple[Function, str]] = {
    "sort": (lambda x: x.sort(1)[0], "Sort orders it"),
    "topk": (lambda x: x.topk(3, 1)[0], "Topk orders it"),
    "kthvalue": (lambda x: x.kthvalue(3, 1, keepdim=True)[0], "Kthvalue orders it"),
    "median": (lambda x: x.median(1, keepdim=True)[0], "Median orders it"),
    "median of everything": (lambda x: x.median() * x[:, :1].detach(), "Median orders it"),
    "mode": (lambda x: x.mode(1, keepdim=True)[0], "Mode orders it"),
    "quantile": (lambda x: x.quantile(0.3, 1, keepdim=True), "Sort orders it"),
    "gather": (lambda x: x.gather(1, expanded(x, 8, 1, 4)), "Gather picks from it by position"),
    "gather by other channels": (lambda x: x.gather(2, positions(*x.shape, below=8, device=x.device)), "Gather picks"),
    "take_along_dim": (lambda x: x.take_along_dim(positions(1, 4, 1, 1, below=8, device=x.device), 1), "Gather picks"),
    "index_select": (lambda x: x.index_select(1, positions(4, below=8, device=x.device)), "IndexSelect picks"),
    "index": (lambda x: x[:, positions(4, below=8, device=x.device)], "Index picks from it by position"),
    "index by the largest": (lambda x: x + x[:, x.amax((0, 2, 3)).topk(8)[1]], "picks from it by position"),
    "index that is overwritten": (_moved_index, "Index picks from it by position"),
    "places of the largest": (lambda x: _pick_largest(x, *x.max(1, keepdim=True)), "Gather picks from it by position"),
    "mask": (lambda x: x[:, torch.arange(8, device=x.device) % 2 > 0], "Index picks from it by position"),
    "select": (lambda x: x[:, 0, None], "Select picks from it by position"),
    "index_add": (lambda x: x.index_add(1, positions(3, below=8, device=x.device), x[:, :3]), "IndexAdd picks"),
    "index_fill": (lambda x: x.index_fill(1, positions(3, below=8, device=x.device), 0.5), "IndexFill picks"),
    "scatter": (lambda x: x.scatter(1, expanded(x, 8, 1, 4), 0.5), "Scatter picks from it by position"),
    "where": (lambda x: torch.where(x > 0, x, 0.1 * x), "Where combines it with something that cannot be pruned"),
    "where the place counts": (
        lambda x: torch.where(torch.arange(8, device=x.device)[:, None, None] > 3, x, -x),
        "Where combines it",
    ),
    "masked_fill": (lambda x: x.masked_fill(x > 0, 0.0), "MaskedFill combines it with something that cannot be pruned"),
    "clamp": (lambda x: x.clamp(cast(x, 8, 1, 1) - 1, cast(x, 8, 1, 1)), "Clamp combines it"),
    "lerp": (lambda x: torch.lerp(x, x.flip(2), cast(x, 8, 1, 1)), "Lerp combines it"),
    "addcmul": (lambda x: torch.addcmul(x, x, cast(x, 8, 1, 1)), "Addcmul combines it"),
    "power": (lambda x: (x + 2) ** cast(x, 8, 1, 1), "Pow combines it"),
    "constant factor": (lambda x: (x.movedim(1, -1) @ cast(x, 8, 4)).movedim(-1, 1), "combines it with something"),
    "Fourier transform": (lambda x: torch.fft.fft(x, dim=1).abs(), "FftR2C works on positions along it"),
    "windows": (lambda x: x.unfold(1, 3, 2).flatten(2), "Unfold works on positions along it"),
    "tril": (lambda x: x.movedim(1, -1).tril().movedim(-1, 1), "Tril works on positions along it"),
    "diagonal": (lambda x: x.diagonal(0, 1, 2).mT, "Diagonal works on positions along it"),
    "diag_embed": (lambda x: x.mean((2, 3)).diag_embed(1), "DiagEmbed works on positions along it"),
    "reflection": (
        lambda x: F.pad(x.movedim(1, -1), (1, 1, 0, 0), mode="reflect").movedim(-1, 1),
        "ReflectionPad2D works",
    ),
    "interpolation": (
        lambda x: F.interpolate(x.mean((2, 3))[:, None], scale_factor=2, mode="linear")[:, 0],
        "UpsampleLinear1D works",
    ),
    "pooling": (lambda x: F.max_pool1d(x.mean((2, 3)), 2), "MaxPool2DWithIndices works on positions along it"),
    "local response norm": (lambda x: F.local_response_norm(x, 3), "AvgPool3D works on positions along it"),
    "convolution over channels": (
        lambda x: F.conv1d(x.mean((2, 3))[:, None], cast(x, 1, 1, 3), padding=1)[:, 0],
        "Convolution",
    ),
    "causal attention over channels": (lambda x: _causal(x.movedim(1, 2)).movedim(1, 2), "Softmax"),
    "pairs of rows": (lambda x: F.pdist(x[0].flatten(1))[None], "Pdist works on positions along it"),
    "a grid": (
        lambda x: F.grid_sample(cast(x, 2, 3, 5, 5), x.movedim(1, 2)[..., :2], align_corners=False),
        "GridSampler2D works",
    ),
}


@pytest.mark.parametrize("name", MUST_STAY)
def test_channels_stay_where_their_places_or_number_count(name: str) -> None:
    function, reason = MUST_STAY[name]
    model, inputs = build(function)
    model.first = nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 8))
    analysis = analyze_model(model, inputs)
    assert {group.name: group.size for group in analysis.groups if group.size > 1} == {"first.0": 6}
    reasons = [f.reason for f in analysis.frozen if ("first.2.weight", 0) in f.parameters]
    assert any(reason in text for text in reasons), reasons


# ------------------------------------------------------------------------------- networks around such operations


def outputs(*paths: str) -> str:
    """The outputs of layers with a bias."""
    return " ".join(f"{path}.weight:0 {path}.bias:0" for path in paths)


def reads(*paths: str) -> str:
    """The inputs of layers."""
    return " ".join(f"{path}.weight:1" for path in paths)


def original(path: str) -> str:
    """Where a reparametrised layer keeps what its weight is computed from."""
    return f"{path}.parametrizations.weight.original"


GATES = " ".join(f"gates.{name}:0" for name in ("scale", "shift", "mix", "other", "low", "high", "power"))
STATISTICS = "1.running_mean:0 1.running_var:0"

# {network: {group: (units, its members)}}
EXPECTED: dict[str, dict[str, tuple[int, str]]] = {
    "einsum_heads": {
        "embed": (8, f"{outputs('embed')} query:0 key:0 value:0 out:2 {reads('head')}"),
        "query": (6, "query:1 key:1 value:1 out:0"),
    },
    # The subsets stay: both read the same tokens.
    "graph_convolution": {
        "conv1": (8, f"{outputs('conv1')} {reads('conv2')}"),
        "conv2": (7, f"{outputs('conv2')} {reads('fc')}"),
    },
    "bilinear": {
        "left": (8, f"{outputs('left')} {reads('join')}"),
        "right": (5, f"{outputs('right')} join.weight:2"),
        "join": (7, f"{outputs('join')} {reads('head')}"),
    },
    "matrix_operations": {
        "bias1": (8, "bias1:0 first:1 second:0"),
        "second": (10, "second:1 bias2:2 third:0 column:0"),
        "row": (7, f"row:0 third:1 gate:0 gate:1 {reads('head')}"),
    },
    "gates": {"fc1": (8, f"{outputs('fc1')} {GATES} {reads('fc2')}")},
    "cosine_head": {"fc": (8, f"{outputs('fc')} classes:1")},
    "soft_codebook": {
        "embed": (8, f"{outputs('embed')} codes:1 {reads('head')}"),
        "spread": (10, "codes:0 spread:0"),
    },
    "one_hot": {"table": (8, f"table:1 {reads('fc')}"), "fc": (6, f"{outputs('fc')} {reads('head')}")},
    "bag": {"words": (8, f"words.weight:1 {reads('head')}"), "most": (6, f"most.weight:1 {reads('head')}")},
    "rotary_complex": {"q": (3, f"{outputs('q', 'k', 'v')} {reads('out')}")},
    "top_tokens": {"embed": (8, f"{outputs('embed')} {reads('score', 'head')}")},
    "latents": {
        "embed": (8, f"{outputs('embed')} latents:1 {reads('head')}"),
        "latents": (7, "latents:0 level:0"),
    },
    "message_passing": {
        "embed": (8, f"{outputs('embed', 'message', 'norm')} {reads('message', 'update')}"),
        "update": (7, f"{outputs('update')} {reads('head')}"),
    },
    # Four channels make a pixel block: 6 x 4 channels are read, 20 channels become 5.
    "sub_pixels": {
        "0": (6, f"{outputs('0')} {reads('3')}"),
        "3": (8, f"{outputs('3')} {reads('5')}"),
        "5": (5, f"{outputs('5')} {reads('8')}"),
    },
    "patches": {
        "stem": (6, f"{outputs('stem')} {reads('mix')}"),
        "mix": (10, f"{outputs('mix')} {reads('spread')}"),
        "spread": (5, f"{outputs('spread')} {reads('head')}"),
    },
    # The shuffle lays (2, 6) out as (6, 2), of which the next layer's groups are the first and the last three.
    "shuffled_groups": {
        "0": (4, f"{outputs('0')} {reads('2')}"),
        "2": (3, f"{outputs('2')} {reads('5')}"),
        "5": (6, f"{outputs('5')} {reads('6')}"),
    },
    "unpooling": {
        "conv1": (6, f"{outputs('conv1', 'conv3')} {reads('conv2', 'head')}"),
        "conv2": (8, f"{outputs('conv2')} {reads('conv3')}"),
    },
    "fourier_layer": {
        "stem": (8, f"{outputs('stem')} low:0 {reads('skip')}"),
        "low": (6, f"low:1 {outputs('skip')} {reads('head')}"),
    },
    "spatial_transformer": {
        "stem": (8, f"{outputs('stem')} {reads('look', 'head')}"),
        "look": (6, f"{outputs('look')} {reads('theta')}"),
    },
    "cbam": {"conv1": (8, f"{outputs('conv1')} {reads('conv2')}")},
    "channel_neighbours": {"conv0": (6, f"{outputs('conv0')} {reads('conv1')}")},
    "response_norm": {"0": (6, f"{outputs('0')} {reads('2')}")},
    "sequence_layers": {
        "0": (8, f"{outputs('0', '1')} 2.weight:0 4.weight:0"),
        "4": (6, f"4.weight:1 4.bias:0 {outputs('6')} {reads('10')}"),
        "10": (7, f"{outputs('10')} {reads('12')}"),
    },
    "volume_layers": {"0": (2, f"{outputs('0', '1', '3', '4')} {STATISTICS} {reads('7')}")},
    "flat_layers": {
        "0": (8, f"{outputs('0')} {STATISTICS} {reads('4')}"),
        "4": (6, f"{outputs('4')} {reads('8')}"),
        "8": (9, f"{outputs('8')} {reads('12')}"),
    },
    "softmax_layers": {"0": (8, f"{outputs('0')} {reads('4')}")},
    "weight_norm_convolutions": {
        "0": (8, f"{outputs('0')} {original('2')}1:1"),
        original("2") + "1": (7, f"{original('2')}1:0 {original('2')}0:0 2.bias:0 {original('4')}1:0"),
        original("4") + "1": (6, f"{original('4')}1:1 {original('4')}0:1 4.bias:0 {reads('6')}"),
    },
    "spectral_norm_convolution": {
        "0": (6, f"{outputs('0')} {original('2')}:1 2.parametrizations.weight.0._v:0"),
        original("2"): (8, f"{original('2')}:0 2.parametrizations.weight.0._u:0 2.bias:0 {reads('4')}"),
        "4": (7, f"{outputs('4')} {reads('6')}"),
    },
    # Rows of an orthogonal matrix can go from the fixed factor on its left; the learned one stays whole.
    "orthogonal": {
        "0": (9, f"{outputs('0')} {reads('2')}"),
        "4.parametrizations.weight.0.base": (8, f"4.parametrizations.weight.0.base:0 4.bias:0 {reads('6')}"),
        "6": (7, f"{outputs('6')} {reads('8')}"),
    },
}


def test_every_network_has_its_groups_written_down() -> None:
    assert set(EXPECTED) == {name for name, case in CASES.items() if case.build.__module__ == "nets_operations"}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_groups_are_those_derived_by_hand(name: str) -> None:
    groups = {g.name: g for g in analyze_model(CASES[name].make(), CASES[name].inputs(2)).groups if g.size > 1}
    assert set(groups) == set(EXPECTED[name])
    for group, (size, members) in EXPECTED[name].items():
        assert groups[group].size == size
        assert {f"{m.parameter}:{m.dim}" for m in groups[group].members} == set(members.split())
