"""Nonlinear least squares on a block's output: Gauss-Newton steps by preconditioned conjugate gradients.

The function is any module, its derivatives are autograd's (forward and backward mode), and nothing larger than the
parameters is ever built. The preconditioner is the Kronecker-factored curvature of Martens and Grosse, "Optimizing
Neural Networks with Kronecker-factored Approximate Curvature", 2015: the moments of what each layer reads on one side,
those of random output gradients on the other.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

from cleanai.isolation import preserve_random_state, seed_random_state
from cleanai.matrices import LayerMatrix
from cleanai.stages import Call, Vector, run_block


class NoDerivativeError(Exception):
    """Autograd cannot differentiate the block, in forward or in backward mode."""


@contextlib.contextmanager
def _differentiation() -> Generator[None]:
    """Derivatives by the transforms of `torch.func`; no graph of the parameters that stay is built besides."""
    # The fused attention kernels have no forward-mode derivative.
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        warnings.filterwarnings("ignore", r".*torch\.jit\.script", Warning)  # torch's own forward-mode rules use it
        try:
            yield
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise NoDerivativeError(str(error).partition("\n")[0]) from error


@dataclass(frozen=True)
class Sample:
    """What a block is called with in one batch, and what it should return there."""

    call: Call
    target: Tensor


def measure_error(block: nn.Module, samples: Sequence[Sample], parameters: Vector | None = None) -> float:
    """The mean squared difference between what a block returns and what it should."""
    with torch.no_grad():
        total = sum(
            float((run_block(block, each.call, parameters) - each.target).double().square().sum()) for each in samples
        )
    return total / sum(each.target.numel() for each in samples)


def refine_block(
    block: nn.Module,
    parameters: Sequence[str],
    training: Sequence[Sample],
    held_out: Sequence[Sample],
    *,
    steps: int = 2,
    iterations: int = 6,
    damping: float = 1e-2,
) -> tuple[float, float, int]:
    """Changes a block's parameters so that its output comes closer to the targets, in the least-squares sense.

    Each Gauss-Newton step goes along the conjugate gradients for ``min_δ ‖f(θ) + Jδ - target‖² + damping · ‖δ‖²_M``, M
    the preconditioner, as far as the error on ``held_out`` falls, at most ``iterations`` of them: stopping early keeps
    many parameters from fitting the noise of few samples.

    Returns:
        The error on ``held_out`` before and after, and how many steps were taken.

    Raises:
        NoDerivativeError: an operation has no derivative that is needed; nothing has been changed.
    """
    problem = _Problem(block, parameters, training)
    values = problem.values
    first = best = measure_error(block, held_out, values)
    taken = 0
    for _ in range(steps):
        found, error = values, best
        for step in problem.descend(values, iterations, damping):
            trial = _combine(values, 1.0, step)
            reached = measure_error(block, held_out, trial)
            if not reached < error:  # not a number, too
                break
            found, error = trial, reached
        if found is values:
            break
        taken += 1
        little = error > 0.99 * best
        values, best = found, error
        if little:
            break
    with torch.no_grad():
        own = dict(block.named_parameters())
        for name, value in values.items():
            own[name].copy_(value)
    return first, best, taken


def _dot(first: Vector, second: Vector) -> float:
    return sum(float((a.double() * second[name].double()).sum()) for name, a in first.items())


def _combine(first: Vector, factor: float, second: Vector) -> Vector:
    return {name: value + factor * second[name] for name, value in first.items()}


class _Problem:
    """The linearised problem at some values of a block's parameters."""

    def __init__(self, block: nn.Module, parameters: Sequence[str], samples: Sequence[Sample]) -> None:
        own = dict(block.named_parameters())
        self.values = {name: own[name].detach().clone() for name in parameters}
        self._block, self._samples = block, samples
        self._size = sum(each.target.numel() for each in samples)

    def descend(self, values: Vector, iterations: int, damping: float) -> Iterator[Vector]:
        """The damped Gauss-Newton step at some values, as conjugate gradients come closer to it."""
        with _differentiation():
            curvature = _Curvature(self._block, values, self._samples, self._size)
            residual = self._descent(values)
        step = {name: torch.zeros_like(value) for name, value in values.items()}
        scaled = curvature.solve(residual)
        direction, length = scaled, _dot(residual, scaled)
        start = length
        for _ in range(iterations):
            if length <= 1e-8 * start or length <= 0:
                break
            with _differentiation():
                image = self._apply(values, direction)
            image = _combine(image, damping, curvature.apply(direction))
            along = _dot(direction, image)
            if not along > 0:
                break
            step = _combine(step, length / along, direction)
            yield step
            residual = _combine(residual, -length / along, image)
            scaled = curvature.solve(residual)
            previous, length = length, _dot(residual, scaled)
            direction = _combine(scaled, length / previous, direction)

    def _function(self, call: Call) -> Callable[[Vector], Tensor]:
        return lambda parameters: run_block(self._block, call, parameters)

    def _descent(self, values: Vector) -> Vector:
        total = {name: torch.zeros_like(value) for name, value in values.items()}
        for each in self._samples:
            linearised = vjp(self._function(each.call), values)
            total = _combine(total, 1.0, linearised[1]((each.target - linearised[0]) / self._size)[0])
        return total

    def _apply(self, values: Vector, direction: Vector) -> Vector:
        """JᵀJ times a direction."""
        total = {name: torch.zeros_like(value) for name, value in values.items()}
        for each in self._samples:
            function = self._function(each.call)
            change = jvp(function, (values,), (direction,))[1]
            total = _combine(total, 1.0, vjp(function, values)[1](change / self._size)[0])
        return total


@dataclass
class _Factor:
    """The curvature of one layer: ``inputs`` (moments of its rows and 1) times ``outputs`` (of its output slopes)."""

    matrix: LayerMatrix
    weight: str
    bias: str | None
    inputs: Tensor
    outputs: Tensor

    def __post_init__(self) -> None:
        self.inputs, self.outputs = _lift(self.inputs, 1e-2), _lift(self.outputs, 1e-2)
        self._inverse = torch.linalg.inv(self.inputs), torch.linalg.inv(self.outputs)

    def _times(self, vector: Vector, inputs: Tensor, outputs: Tensor) -> Vector:
        joined = self.matrix.fold(vector[self.weight])
        if self.bias is not None:
            joined = torch.cat([joined, vector[self.bias].view(self.matrix.groups, -1, 1)], 2)
        made = outputs.to(joined) @ joined @ inputs.to(joined)
        if self.bias is None:
            return {self.weight: self.matrix.unfold(made)}
        return {self.weight: self.matrix.unfold(made[..., :-1]), self.bias: made[..., -1].flatten()}

    def apply(self, vector: Vector) -> Vector:
        """The curvature times a vector."""
        return self._times(vector, self.inputs, self.outputs)

    def solve(self, vector: Vector) -> Vector:
        """Its inverse times a vector."""
        return self._times(vector, *self._inverse)


def _lift(square: Tensor, share: float) -> Tensor:
    """A positive semi-definite matrix made safely invertible: a share of its mean diagonal added."""
    mean = square.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=1e-12)
    return square + share * mean[:, None, None] * torch.eye(square.shape[-1], dtype=square.dtype, device=square.device)


class _Curvature:
    """The preconditioner: Kronecker factors for the layers' weights and biases, a diagonal for what is left."""

    def __init__(self, block: nn.Module, values: Vector, samples: Sequence[Sample], size: int) -> None:
        self._diagonal = {name: torch.zeros_like(value) for name, value in values.items()}
        self._moments: dict[str, list[Any]] = {}
        layers = {
            path: LayerMatrix(module)
            for path, module in block.named_modules()
            if LayerMatrix.fits(module) and _name(path, "weight") in values
        }
        with preserve_random_state():
            seed_random_state(0)
            for each in samples:
                self._probe(block, layers, values, each, size)
        self._factors = []
        for path, (inputs, outputs, rows) in self._moments.items():
            weight, bias = _name(path, "weight"), _name(path, "bias")
            with_bias = bias in values
            used = inputs if with_bias else inputs[:, :-1, :-1]
            self._factors.append(_Factor(layers[path], weight, bias if with_bias else None, used / rows, outputs))
            self._diagonal.pop(weight)
            self._diagonal.pop(bias, None)
        self._diagonal = {n: d + 1e-2 * d.mean().clamp(min=1e-12) for n, d in self._diagonal.items()}

    def _probe(
        self, block: nn.Module, layers: dict[str, LayerMatrix], values: Vector, sample: Sample, size: int
    ) -> None:
        reads: list[tuple[str, Tensor, Tensor]] = []

        def note(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Tensor, path: str) -> Tensor:
            where = layers[path].sample(output, max(1, _MOST_ROWS // max(1, len(output))), path)
            reads.append((path, layers[path].read(_first(given, named).detach(), where), output))
            return output.clone()  # the next operation may write to it

        hooks = [
            matrix.layer.register_forward_hook(functools.partial(note, path=path), with_kwargs=True)
            for path, matrix in layers.items()
        ]
        leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
        try:
            with torch.enable_grad():
                output = run_block(block, sample.call, leaves)
        finally:
            for hook in hooks:
                hook.remove()
        if not output.requires_grad:
            return
        made = [out for _, _, out in reads]
        wanted = [*made, *leaves.values()]
        gradients = torch.autograd.grad(output, wanted, torch.randn_like(output), allow_unused=True)
        for (path, rows, out), gradient in zip(reads, gradients, strict=False):
            if gradient is not None:
                self._add(path, layers[path], rows, out, gradient, size)
        for name, gradient in zip(leaves, gradients[len(made) :], strict=True):
            if gradient is not None:
                self._diagonal[name] += gradient.square() / size

    def _add(self, path: str, matrix: LayerMatrix, rows: Tensor, out: Tensor, gradient: Tensor, size: int) -> None:
        rows = torch.cat([rows, torch.ones_like(rows[..., :1])], 2)
        inputs = (rows.mT @ rows).double()
        slopes = matrix.pick(gradient, torch.arange(_positions(matrix, out), device=out.device))
        outputs = (slopes.mT @ slopes).double() / size
        if path in self._moments:
            before = self._moments[path]
            self._moments[path] = [before[0] + inputs, before[1] + outputs, before[2] + rows.shape[1]]
        else:
            self._moments[path] = [inputs, outputs, rows.shape[1]]

    def apply(self, vector: Vector) -> Vector:
        """The preconditioner times a vector."""
        return self._join(vector, "apply", {name: vector[name] * d for name, d in self._diagonal.items()})

    def solve(self, vector: Vector) -> Vector:
        """Its inverse times a vector."""
        return self._join(vector, "solve", {name: vector[name] / d for name, d in self._diagonal.items()})

    def _join(self, vector: Vector, action: str, rest: Vector) -> Vector:
        found = {key: value for factor in self._factors for key, value in getattr(factor, action)(vector).items()}
        return {name: found[name] if name in found else rest[name] for name in vector}


_MOST_ROWS = 8192


def _positions(matrix: LayerMatrix, output: Tensor) -> int:
    return len(matrix.sample(output, output.numel(), ""))


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else next(iter(kwargs.values()))


def _name(path: str, attribute: str) -> str:
    return f"{path}.{attribute}" if path else attribute
