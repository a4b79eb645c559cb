"""Second moments of what layers read, and how much what they make matters, watched in the calibration pass."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cleanai.inputs import map_tensors, output_tensors
from cleanai.isolation import share_tensors
from cleanai.matrices import LayerMatrix, LayerMoments, Moments
from cleanai.stages import Call, run_block

_ROWS = 2**11
"""So many rows of each batch go into the moments, at least four for each column."""
_MOST_PROBES = 4
"""So many batches are differentiated; how much a channel matters needs fewer than the moments."""


@dataclass
class _Stage:
    """What is summed up for a block: the spread of its output and its layers' output gradients."""

    sums: dict[tuple[int, ...], list[Any]] = field(default_factory=dict)
    square: float = 0.0
    slopes: dict[str, Tensor] = field(default_factory=dict)

    def add_output(self, output: Tensor) -> None:
        wide = output.detach().double()
        key = tuple(wide.shape[1:])
        count, total = self.sums.get(key, [0, 0.0])
        self.sums[key] = [count + len(wide), total + wide.sum(0)]
        self.square += float(wide.square().sum())

    @property
    def scatter(self) -> float:
        """The output's squared distance from its mean over samples, summed up."""
        means = sum(float(total.square().sum()) / count for count, total in self.sums.values())
        spread = self.square - means
        return spread if spread > 1e-9 * self.square else max(self.square, 1e-30)


class MomentWatch:
    """Hooks that collect `LayerMoments` while a model runs; put on before any others.

    Args:
        stages: the blocks, each called once in a forward (`cleanai.stages.list_stages`), with the axis of what they
            return along which the channels lie, 0 where it is not known.
    """

    def __init__(self, model: nn.Module, stages: Mapping[str, int]) -> None:
        self._stages = {path: _Stage() for path in stages}
        self._moments: dict[str, Moments] = {}
        self._taps: dict[str, int] = {}
        self._probed = dict.fromkeys(stages, 0)
        self._bare = share_tensors(model)  # blocks are run once more, past all hooks
        for path, axis in stages.items():
            block = model.get_submodule(path)
            block.register_forward_pre_hook(self._make_entry(path), with_kwargs=True)
            if axis and not LayerMatrix.fits(block):
                block.register_forward_hook(self._make_taker(path, axis))
            for name, layer in block.named_modules():
                if LayerMatrix.fits(layer):
                    full = ".".join(part for part in (path, name) if part)
                    self._taps[full] = LayerMatrix(layer).taps
                    layer.register_forward_hook(self._make_reader(full), with_kwargs=True)

    def _make_taker(self, path: str, axis: int) -> Any:
        def take(_: nn.Module, __: Any, output: Any) -> None:
            found = output_tensors(output)
            if found:
                rows = found[0].detach().movedim(axis, -1).flatten(0, -2)
                step = max(1, len(rows) // max(_ROWS, 4 * rows.shape[1]))
                self._add(path, Moments.of(rows[None, ::step]))

        return take

    def _add(self, path: str, found: Moments) -> None:
        self._moments[path] = self._moments[path].merge(found) if path in self._moments else found

    def _make_reader(self, path: str) -> Any:
        def read(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if not isinstance(output, Tensor) or not output.numel():
                return
            matrix = LayerMatrix(layer)
            batch = len(output) if matrix.is_convolution and output.dim() > len(matrix.layer.kernel_size) + 1 else 1
            count = max(1, max(_ROWS, 4 * matrix.inputs) // batch)
            given = args[0] if args else next(iter(kwargs.values()))
            self._add(path, Moments.of(matrix.read(given.detach(), matrix.sample(output, count, path))))

        return read

    def _make_entry(self, path: str) -> Any:
        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._probed[path] < _MOST_PROBES:
                self._probed[path] += 1
                self._probe(path, self._bare.get_submodule(path), (args, kwargs))

        return enter

    def _probe(self, path: str, block: nn.Module, call: Call) -> None:
        """Random combinations of the block's outputs, differentiated by its layers' outputs."""
        made: list[tuple[str, LayerMatrix, Tensor]] = []

        def note(layer: nn.Module, _: Any, output: Tensor, name: str) -> Tensor:
            if not output.requires_grad:  # nothing before it is differentiable: word numbers, and frozen weights
                output.requires_grad_()
            made.append((name, LayerMatrix(layer), output))
            return output.clone()  # the next operation may write to it

        hooks = [
            layer.register_forward_hook(functools.partial(note, name=name))
            for name, layer in block.named_modules()
            if LayerMatrix.fits(layer)
        ]

        def follow(tensor: Tensor) -> Tensor:
            return tensor.detach().clone().requires_grad_() if tensor.is_floating_point() else tensor

        try:
            with torch.enable_grad():
                output = run_block(block, map_tensors(follow, call))
        finally:
            for hook in hooks:
                hook.remove()
        stage = self._stages[path]
        stage.add_output(output)
        outputs = [each for _, _, each in made]
        if not outputs or not output.requires_grad:
            return
        generator = torch.Generator().manual_seed(self._probed[path])
        weights = torch.randn(output.shape, generator=generator, dtype=torch.float32).to(output)
        slopes = torch.autograd.grad(output, outputs, weights, allow_unused=True)
        found = dict(zip(map(id, outputs), slopes, strict=True))
        for name, matrix, each in made:
            slope = found.get(id(each))
            if slope is not None:
                full = ".".join(part for part in (path, name) if part)
                rows = matrix.pick(slope, matrix.sample(slope, slope.numel(), ""))
                total = rows.double().square().sum(1).cpu()
                stage.slopes[full] = stage.slopes[full] + total if full in stage.slopes else total

    def collect(self) -> dict[str, LayerMoments]:
        """What was seen of each layer, and of what each block returns (to be made from itself)."""
        found = {}
        for path, moments in self._moments.items():
            if path not in self._taps:
                spread = moments.covariance.diagonal(dim1=1, dim2=2).cpu()
                gain = torch.full_like(spread, 1 / max(float(spread.sum()), 1e-30))
                found[path] = LayerMoments(Moments(moments.count, moments.total.cpu(), moments.square.cpu()), gain, 1)
        for stage in self._stages.values():
            for layer, slopes in stage.slopes.items():
                moments = self._moments[layer]
                kept = Moments(moments.count, moments.total.cpu(), moments.square.cpu())
                found[layer] = LayerMoments(kept, slopes / stage.scatter, self._taps[layer])
        return found
