"""Gradient statistics: what the loss says of every index of every parameter, one streaming pass over labelled batches.

The gradients are those of the loss with respect to the parameters of a stand-in: the caller's ``.grad`` and
``requires_grad`` play no part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvNd

from cleanai.calibration import count_samples, device_of, draw_batches, move_tensors, select_inputs
from cleanai.checks import check_count
from cleanai.errors import InputError
from cleanai.inputs import batch_to_inputs, call_model, output_tensors
from cleanai.isolation import StateTensor, shadow_model
from cleanai.layers import prepare_layers
from cleanai.trace import ForwardFunction

Dimension = tuple[str, int]
"""A parameter's name and one of its dimensions."""
LossFunction = Callable[[nn.Module, Any], Tensor]


@dataclass
class GradientStatistics:
    """Sums over batches for each index along a dimension of a parameter: {(name, dim): float64, shape [size]}.

    Every dimension is there but the kernel sizes of convolutions. With g the gradient of a batch's mean loss and w the
    parameter, Σ runs over everything that an index holds.

    Attributes:
        squares: the sums of (Σ g·w)² over batches.
        absolutes: the sums of ``|Σ g·w|`` over batches.
        curvatures: the sums of estimates of wᵢᵀHwᵢ, where wᵢ is the parameter with all but that index set to 0 and H
            the Hessian of the loss; empty if not asked for.
        batches, samples: how many of each were seen.

    Example:
        >>> from cleanai import collect_gradients
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> with torch.no_grad():
        ...     _ = layer.weight.copy_(torch.tensor([[1.0, 2.0]]))
        >>> batches = [torch.tensor([[3.0, 4.0]])]
        >>> found = collect_gradients(layer, batches, lambda model, x: model(x).mean(), progress=False)
        >>> found.squares["weight", 1].tolist()  # the gradient is (3, 4)
        [9.0, 64.0]
    """

    squares: dict[Dimension, Tensor]
    absolutes: dict[Dimension, Tensor]
    curvatures: dict[Dimension, Tensor] = field(default_factory=dict)
    batches: int = 0
    samples: int = 0

    def merge(self, other: GradientStatistics) -> GradientStatistics:
        """The statistics of this pass and an ``other`` (shards of the data) together.

        Raises:
            InputError: only one of them looked at curvature.
        """
        if bool(self.curvatures) != bool(other.curvatures):
            raise InputError("one of the passes has no curvature: collect both with curvature=True, or both without")
        tables = [
            {key: ours[key] + theirs[key] for key in ours}
            for ours, theirs in (
                (self.squares, other.squares),
                (self.absolutes, other.absolutes),
                (self.curvatures, other.curvatures),
            )
        ]
        return GradientStatistics(*tables, batches=self.batches + other.batches, samples=self.samples + other.samples)

    def after(self, kept: Mapping[Dimension, Tensor]) -> GradientStatistics:
        """The statistics of what a cut ``kept`` ({(name, dim): positions})."""
        tables = [
            {key: values[kept[key]] if key in kept else values for key, values in table.items()}
            for table in (self.squares, self.absolutes, self.curvatures)
        ]
        return GradientStatistics(*tables, batches=self.batches, samples=self.samples)

    def __repr__(self) -> str:
        names = {name for name, _ in self.squares}
        curvature = ", with curvature" if self.curvatures else ""
        return f"GradientStatistics({len(names)} parameters, {self.batches} batches, {self.samples} samples{curvature})"


def cross_entropy(model: nn.Module, batch: Any, *, example_inputs: Any = None, forward_fn: Any = None) -> Tensor:
    """The mean cross-entropy of the model's first output on an (inputs, labels) batch: the default loss.

    Raises:
        InputError: the batch has no labels, or they do not fit the output.
    """
    targets = batch_to_inputs(batch)[1]
    if not isinstance(targets, Tensor):
        raise InputError(
            "gradients need labels: give (inputs, labels) batches, or a loss_fn(model, batch) that needs none"
        )
    output = call_model(model, select_inputs(batch, example_inputs), forward_fn)
    tensors = output_tensors(output)
    logits = output.get("logits") if isinstance(output, Mapping) else None
    if not isinstance(logits, Tensor) and tensors:
        logits = tensors[0]
    if not isinstance(logits, Tensor):
        raise InputError(f"the model returned {type(output).__name__}, not scores: give a loss_fn(model, batch)")
    try:
        return F.cross_entropy(logits, targets)
    except (RuntimeError, ValueError, IndexError) as error:
        raise InputError(
            f"cross-entropy cannot compare the model's output of shape {tuple(logits.shape)} with labels of shape "
            f"{tuple(targets.shape)} ({error}): give a loss_fn(model, batch)"
        ) from error


def collect_gradients(
    model: nn.Module,
    loader: Iterable[Any],
    loss_fn: LossFunction | None = None,
    num_batches: int | None = None,
    *,
    curvature: bool = False,
    probes: int = 1,
    seed: int = 0,
    example_inputs: Any = None,
    forward_fn: ForwardFunction | None = None,
    progress: bool | None = None,
) -> GradientStatistics:
    """One pass over labelled batches with a backward pass for each.

    The model runs in evaluation mode and is left as it was, whatever happens; parameters that do not require gradients
    are looked at too. Memory does not grow with the number of batches. `StructuredPruner.collect_gradients` is this for
    the model of a pruner.

    Args:
        model: any model; batches are moved to its device.
        loader: yields (inputs, labels) pairs, tuples or dicts with labels; anything that ``loss_fn`` understands.
        loss_fn: ``loss_fn(model, batch)``, a scalar; None for the cross-entropy of the first output.
        num_batches: at most so many batches; None for all.
        curvature: estimate wᵢᵀHwᵢ too, by Hutchinson's method (1990): with one random sign sᵢ = ±1 for each index and
            v = s·w, the expectation of Σ v·(Hv) over an index is wᵢᵀHwᵢ. One Hessian-vector product for each
            dimension that holds channels, times ``probes``.
        probes: how many times; the estimates are averaged.
        seed: of those signs.
        example_inputs: tells how many of a batch's tensors are inputs; without them all but the labels are.
        forward_fn: ``forward_fn(model, inputs)`` in place of ``model(inputs)``, where there is no ``loss_fn``.
        progress: True or False for a progress bar; None shows one on terminals.

    Raises:
        InputError: the loader is empty, a batch has no labels or does not fit the model, the loss is not a finite
            scalar or does not depend on the parameters.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> batches = [(torch.ones(5, 3), torch.zeros(5, dtype=torch.long))]
        >>> gradients = collect_gradients(net, batches, progress=False)
        >>> gradients
        GradientStatistics(4 parameters, 1 batches, 5 samples)
        >>> gradients.squares["0.weight", 0].shape  # one number for each of the first layer's outputs
        torch.Size([4])
    """
    check_count(probes, "probes")
    check_count(seed, "seed", least=None)
    if loss_fn is not None and not callable(loss_fn):
        raise InputError(f"loss_fn is {loss_fn!r}; give a function loss_fn(model, batch), or leave it out")
    total = GradientStatistics({}, {})
    generator = torch.Generator().manual_seed(seed)
    device = device_of(model)
    with shadow_model(model, "real", track_buffers=False, prepare=prepare_layers) as owners, ExitStack() as stack:
        for module in model.modules():
            module.training = False
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_differentiable_kernels(model, curvature))
        states = {owners[id(p)].name: (p, owners[id(p)]) for p in model.parameters() if p.requires_grad}
        parameters = {name: p for name, (p, _) in states.items()}
        dims = {name: _channel_dims(p, state) for name, (p, state) in states.items()}
        for number, drawn in draw_batches(loader, num_batches, "gradients", progress):
            batch = move_tensors(drawn, device)
            loss = _compute_loss(model, batch, number, loss_fn, example_inputs, forward_fn)
            gradients = _differentiate(loss, parameters, keep_graph=curvature, number=number)
            found = _summarise(parameters, gradients, dims)
            for _ in range(probes if curvature else 0):
                _add_curvature(found.curvatures, parameters, gradients, dims, generator, 1 / probes)
            found.batches, found.samples = 1, count_samples(select_inputs(batch, example_inputs))
            del loss, gradients
            total = total.merge(found) if total.batches else found
    return total


def _channel_dims(parameter: nn.Parameter, state: StateTensor) -> range:
    """The dimensions that may hold channels: all but the kernel sizes of a convolution."""
    return range(min(2, parameter.dim()) if isinstance(state.places[0].module, _ConvNd) else parameter.dim())


@contextmanager
def _differentiable_kernels(model: nn.Module, twice: bool) -> Generator[None]:
    """Switches off the kernels that cannot be differentiated (in evaluation mode, or twice)."""
    with ExitStack() as stack:
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        if twice:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def _compute_loss(
    model: nn.Module, batch: Any, number: int, loss_fn: LossFunction | None, example_inputs: Any, forward_fn: Any
) -> Tensor:
    try:
        if loss_fn is not None:
            loss = loss_fn(model, batch)
        else:
            loss = cross_entropy(model, batch, example_inputs=example_inputs, forward_fn=forward_fn)
    except (RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"the loss of batch {number} of the loader cannot be computed ({type(error).__name__}: {error})"
        ) from error
    name = "loss_fn" if loss_fn is not None else "the loss"
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise InputError(f"{name} gave {shape} for batch {number}; it must give a scalar tensor")
    if not math.isfinite(float(loss.detach())):
        raise InputError(f"{name} is {float(loss.detach())} for batch {number}: look at the data and the labels")
    if not loss.requires_grad:
        raise InputError(
            f"{name} of batch {number} does not depend on the parameters: compute it from the model's output, without "
            "torch.no_grad() or .detach()"
        )
    return loss.reshape(())


def _differentiate(
    loss: Tensor, parameters: Mapping[str, nn.Parameter], *, keep_graph: bool, number: int
) -> dict[str, Tensor]:
    """The gradient of each parameter, zeros where the loss does not depend on it."""
    if keep_graph:
        try:
            found = torch.autograd.grad(loss, list(parameters.values()), create_graph=True, allow_unused=True)
        except RuntimeError as error:
            raise _not_twice(error) from error
    else:
        loss.backward()  # unlike autograd.grad, this also goes through reentrant checkpoints
        found = tuple(parameter.grad for parameter in parameters.values())
        for parameter in parameters.values():
            parameter.grad = None
    gradients = {}
    for (name, parameter), gradient in zip(parameters.items(), found, strict=True):
        gradient = torch.zeros_like(parameter) if gradient is None else gradient
        gradient = gradient.to_dense() if gradient.is_sparse else gradient
        if not bool(gradient.detach().isfinite().all()):
            raise InputError(f"the gradient of {name} holds NaN or infinite values for batch {number}")
        gradients[name] = gradient
    return gradients


def _not_twice(error: Exception) -> InputError:
    return InputError(
        f"the model cannot be differentiated twice ({error}): use a criterion that needs no curvature, such as 'taylor'"
    )


def _sum_all_but(product: Tensor, dim: int) -> Tensor:
    return product.movedim(dim, 0).reshape(product.shape[dim], -1).sum(1).cpu()


def _summarise(
    parameters: Mapping[str, nn.Parameter], gradients: Mapping[str, Tensor], dims: Mapping[str, range]
) -> GradientStatistics:
    squares, absolutes = {}, {}
    for name, parameter in parameters.items():
        product = parameter.detach().double() * gradients[name].detach()
        for dim in dims[name]:
            sums = _sum_all_but(product, dim)
            squares[name, dim], absolutes[name, dim] = sums.square(), sums.abs()
    return GradientStatistics(squares, absolutes)


def _add_curvature(
    curvatures: dict[Dimension, Tensor],
    parameters: Mapping[str, nn.Parameter],
    gradients: Mapping[str, Tensor],
    dims: Mapping[str, range],
    generator: torch.Generator,
    share: float,
) -> None:
    """Adds ``share`` times one estimate of wᵢᵀHwᵢ for each index along each dimension."""
    for dim in range(max(map(len, dims.values()), default=0)):
        own = {name: parameter for name, parameter in parameters.items() if dim in dims[name]}
        vectors = {
            name: _random_signs(parameter, dim, generator) * parameter.detach() for name, parameter in own.items()
        }
        products = _multiply_hessian({name: gradients[name] for name in own}, own, vectors)
        for name, parameter in own.items():
            values = torch.zeros(parameter.shape[dim], dtype=torch.float64)
            if name in products:
                values = _sum_all_but(vectors[name].double() * products[name].detach(), dim)
            curvatures[name, dim] = curvatures.get((name, dim), 0) + share * values


def _random_signs(parameter: Tensor, dim: int, generator: torch.Generator) -> Tensor:
    """±1 for each index along a dimension, in a shape that broadcasts against the parameter."""
    shape = [size if axis == dim else 1 for axis, size in enumerate(parameter.shape)]
    return (torch.randint(0, 2, shape, generator=generator) * 2 - 1).to(parameter)


def _multiply_hessian(
    gradients: Mapping[str, Tensor], parameters: Mapping[str, Tensor], vectors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The Hessian times a vector, parameter by parameter; those on which no gradient depends are left out."""
    bent = [name for name in gradients if gradients[name].requires_grad]
    if not bent:
        return {}
    sources = ([gradients[name] for name in bent], list(parameters.values()), [vectors[name] for name in bent])
    try:
        found = torch.autograd.grad(*sources, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        raise _not_twice(error) from error
    return {name: each for name, each in zip(parameters, found, strict=True) if each is not None}
