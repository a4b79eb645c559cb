"""Convolutions and linear layers as matrix products: which rows they multiply, and with what.

A layer is ``output = rows @ weight.T + bias`` for each of its groups. The rows are what it reads at each output
position: a linear layer's input vectors, a convolution's patches. Of a large input a sample of positions is enough.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from cleanai.layers import channel_dim


class LayerMatrix:
    """A convolution, transposed convolution or linear layer seen as one matrix product per group.

    Attributes:
        groups: how many products side by side; 1 for a linear layer.
        outputs, inputs: rows and columns of each group's matrix; a column is one input channel at one kernel position,
            all positions of a channel next to each other (``taps`` many).

    Example:
        >>> layer = nn.Conv2d(4, 6, 3, padding=1, groups=2)
        >>> matrix = LayerMatrix(layer)
        >>> matrix.groups, matrix.outputs, matrix.inputs, matrix.taps
        (2, 3, 18, 9)
        >>> x = torch.randn(5, 4, 8, 8)
        >>> where = matrix.sample(layer(x), 10, "seed")
        >>> rows, made = matrix.read(x, where), matrix.pick(layer(x), where)
        >>> torch.allclose(rows @ matrix.weight.mT + layer.bias.view(2, 1, 3), made, atol=1e-5)
        True
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer: Any = layer
        self.is_convolution = isinstance(layer, _ConvNd)
        self.groups = int(self.layer.groups) if self.is_convolution else 1
        self.taps = math.prod(self.layer.kernel_size) if self.is_convolution else 1
        self.outputs, self.inputs = self.weight.shape[1:]

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether a module is such a layer, with a weight that is one of its parameters."""
        return bool(channel_dim(module)) and isinstance(module._parameters.get("weight"), nn.Parameter)

    @property
    def weight(self) -> Tensor:
        """The matrices of the layer's weight: shape [groups, outputs, inputs]."""
        return self.fold(self.layer.weight.detach())

    def fold(self, weight: Tensor) -> Tensor:
        """The matrices of a tensor shaped like the layer's weight."""
        if not self.is_convolution:
            return weight[None]
        if self.layer.transposed:  # (in, out / groups, kernel); the kernel is read backwards
            weight = weight.flip(*range(2, weight.dim()))
            split = weight.reshape(self.groups, -1, *weight.shape[1:])
            return split.transpose(1, 2).flatten(2)
        return weight.reshape(self.groups, -1, *weight.shape[1:]).flatten(2)

    def unfold(self, matrices: Tensor) -> Tensor:
        """Matrices in the form in which the layer keeps its weight; undoes `fold`."""
        weight = self.layer.weight
        if not self.is_convolution:
            return matrices[0]
        if self.layer.transposed:
            kernel = weight.shape[2:]
            split = matrices.reshape(self.groups, self.outputs, -1, *kernel).transpose(1, 2)
            return split.reshape(weight.shape).flip(*range(2, weight.dim()))
        return matrices.reshape(weight.shape)

    # ------------------------------------------------------------------------------------------------- what it reads

    def sample(self, output: Tensor, count: int, seed: str) -> Tensor:
        """At most ``count`` output positions of each sample (for a linear layer: of all vectors), the same by seed."""
        total = math.prod(self._space(output)) if self.is_convolution else math.prod(output.shape[:-1])
        if count >= total:
            return torch.arange(total, device=output.device)
        generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
        return torch.randperm(total, generator=generator)[:count].sort().values.to(output.device)

    def pick(self, output: Tensor, where: Tensor) -> Tensor:
        """A layer's outputs at some positions: shape [groups, rows, outputs of that tensor per group]."""
        if not self.is_convolution:
            return output.reshape(-1, output.shape[-1])[where][None]
        batch = output if output.dim() > len(self.layer.kernel_size) + 1 else output[None]
        values = batch.flatten(2)[:, :, where].transpose(1, 2).flatten(0, 1)
        return values.reshape(len(values), self.groups, -1).transpose(0, 1)

    def read(self, given: Tensor, where: Tensor) -> Tensor:
        """What the layer multiplies at some output positions: shape [groups, rows, inputs]."""
        if not self.is_convolution:
            return given.reshape(-1, given.shape[-1])[where][None]
        layer, kernel = self.layer, self.layer.kernel_size
        batch = given if given.dim() > len(kernel) + 1 else given[None]
        batch, stride = self._pad(batch)
        space = batch.shape[2:]
        spans = [d * (k - 1) for d, k in zip(layer.dilation, kernel, strict=True)]
        places = [(n - span - 1) // s + 1 for n, span, s in zip(space, spans, stride, strict=True)]
        index = torch.zeros(len(where), self.taps, dtype=torch.int64, device=batch.device)
        corners = torch.unravel_index(where, places)
        offsets = torch.unravel_index(torch.arange(self.taps, device=batch.device), kernel)
        for corner, offset, n, s, d in zip(corners, offsets, space, stride, layer.dilation, strict=True):
            index = index * n + (corner * s)[:, None] + offset * d
        patches = batch.flatten(2)[:, :, index]  # (N, C, positions, taps)
        patches = patches.transpose(1, 2).flatten(0, 1)  # (rows, C, taps)
        return patches.reshape(len(patches), self.groups, -1).transpose(0, 1)

    def _space(self, output: Tensor) -> torch.Size:
        return output.shape[-len(self.layer.kernel_size) :]

    def _pad(self, batch: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """The padded input of a plain convolution with the same patches, and that convolution's stride."""
        layer = self.layer
        if not layer.transposed:
            mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            return F.pad(batch, layer._reversed_padding_repeated_twice, mode=mode), layer.stride
        # A transposed convolution is a plain one over its input with zeros between the values.
        space = [(n - 1) * s + 1 for n, s in zip(batch.shape[2:], layer.stride, strict=True)]
        spread = batch.new_zeros(*batch.shape[:2], *space)
        spread[(slice(None), slice(None), *(slice(None, None, s) for s in layer.stride))] = batch
        around = []
        for k, d, p, extra in zip(layer.kernel_size, layer.dilation, layer.padding, layer.output_padding, strict=True):
            around = [d * (k - 1) - p, d * (k - 1) - p + extra, *around]
        return F.pad(spread, around), (1,) * len(space)


def sum_products(first: Tensor, second: Tensor) -> Tensor:
    """Σ_r first[r] second[r]ᵀ in double precision: shapes [groups, rows, n] and [groups, rows, m] to [groups, n, m].

    Multiplied in the tensors' own precision (at least single) around their means, which may be far from 0: what is
    left of a large square after the mean's is taken off would be rounding.
    """
    wide = torch.promote_types(first.dtype, torch.float32)
    first, second = first.to(wide), second.to(wide)
    middle, other = first.mean(1, keepdim=True), second.mean(1, keepdim=True)
    left, right = first - middle, second - other
    # The centred rows still sum up to what rounding made of the mean.
    rests = left.double().sum(1), right.double().sum(1)
    middle, other = middle.double(), other.double()
    total = (left.mT @ right).double() + first.shape[1] * middle.mT @ other
    return total + rests[0][:, :, None] @ other + middle.mT @ rests[1][:, None, :]


class Moments:
    """Streamed first and second moments of a layer's rows: sums only, merged exactly.

    ``count`` rows; ``mean`` (float64, [groups, n]) and ``covariance`` ([groups, n, n]).
    """

    def __init__(self, count: int, total: Tensor, square: Tensor) -> None:
        self.count, self.total, self.square = count, total, square

    @classmethod
    def of(cls, rows: Tensor) -> Moments:
        """The moments of rows of shape [groups, rows, n]."""
        return cls(rows.shape[1], rows.double().sum(1), sum_products(rows, rows))

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of rows together."""
        return Moments(self.count + other.count, self.total + other.total, self.square + other.square)

    @property
    def mean(self) -> Tensor:
        """E[row]: shape [groups, n]."""
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """E[(row - mean)(row - mean)ᵀ]: shape [groups, n, n]."""
        mean = self.mean
        return self.square / self.count - mean[:, :, None] * mean[:, None, :]


@dataclass(frozen=True)
class LayerMoments:
    """What a calibration pass saw of a layer's rows, and how much its outputs matter for its block.

    ``gain`` (float64, [groups, outputs]): by what share of its variance the block's output is disturbed by a squared
    error of 1 in an output channel, at every position (first order).
    """

    moments: Moments
    gain: Tensor
    taps: int

    def merge(self, other: LayerMoments) -> LayerMoments:
        """What two passes saw together."""
        moments = self.moments.merge(other.moments)
        own, theirs = self.moments.count / moments.count, other.moments.count / moments.count
        return LayerMoments(moments, own * self.gain + theirs * other.gain, self.taps)

    def keep(self, inputs: Tensor | None, outputs: Tensor | None) -> LayerMoments | None:
        """What is left for some input and output channels (None: all); None where groups keep different numbers."""
        groups, made = self.gain.shape
        reads = _split_channels(inputs, groups, self.moments.total.shape[1] // self.taps)
        outs = _split_channels(outputs, groups, made)
        left = [(read, out) for read, out in zip(reads, outs, strict=True) if len(read) and len(out)]
        if not left or any((len(read), len(out)) != (len(left[0][0]), len(left[0][1])) for read, out in left):
            return None
        number = [group for group in range(groups) if len(reads[group]) and len(outs[group])]
        columns = [(read[:, None] * self.taps + torch.arange(self.taps)).flatten() for read, _ in left]
        total = torch.stack([self.moments.total[g][own] for g, own in zip(number, columns, strict=True)])
        square = torch.stack([self.moments.square[g][own][:, own] for g, own in zip(number, columns, strict=True)])
        gain = torch.stack([self.gain[g][out] for g, (_, out) in zip(number, left, strict=True)])
        return LayerMoments(Moments(self.moments.count, total, square), gain, self.taps)


def _split_channels(positions: Tensor | None, groups: int, each: int) -> list[Tensor]:
    """Channel positions of a grouped layer as positions inside each group."""
    if positions is None:
        positions = torch.arange(groups * each)
    return [positions[positions // each == group] % each for group in range(groups)]
