"""What a model costs and how well it does: parameters, size, MACs, latency, accuracy and loss, all measured.

Nothing here leaves a trace on the model: modes, hooks, buffers, thread count and random state are as before, also
after an exception.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import operator
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from cleanai.checks import check_count, check_loader, check_model, check_positive
from cleanai.errors import InputError
from cleanai.inputs import batch_to_inputs, call_model, map_tensors, output_tensors
from cleanai.isolation import ShadowKind, evaluation_mode, preserve_random_state, shadow_model

if TYPE_CHECKING:
    from torch.utils.benchmark import Timer

__all__ = [
    "Evaluation",
    "Latency",
    "ModelMetrics",
    "count_macs",
    "count_parameters",
    "evaluate_model",
    "measure_latency",
    "measure_model",
]

ForwardFn = Callable[[nn.Module, Any], Any]
LossFn = Callable[[Any, Tensor], Tensor]

WARM_UP_CALLS = 3
MEGABYTE = 10**6


@dataclasses.dataclass(frozen=True)
class Latency:
    """The time of one forward call in milliseconds: the median over timed blocks and the spread around it.

    Attributes:
        median_ms: median time of one call, in ms.
        iqr_ms: interquartile range of that time, in ms.
        runs: how many calls were timed, warm-up not counted.
        num_threads: the CPU threads torch was given.
        batch_size: size of the first dimension of the first input tensor; 0 where there is none.
        disturbed: True where the spread exceeds a tenth of the median, so that something else used the machine.

    Example:
        >>> latency = Latency(median_ms=2.5, iqr_ms=0.04, runs=400, num_threads=1, batch_size=8, disturbed=False)
        >>> print(latency)
        2.5 ms ± 0.04 (IQR; batch 8, 1 thread)
    """

    median_ms: float
    iqr_ms: float
    runs: int
    num_threads: int
    batch_size: int
    disturbed: bool

    def __str__(self) -> str:
        threads = "1 thread" if self.num_threads == 1 else f"{self.num_threads} threads"
        note = ", disturbed" if self.disturbed else ""
        return f"{self.median_ms:.3g} ms ± {self.iqr_ms:.2g} (IQR; batch {self.batch_size}, {threads}{note})"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How well a model does on a loader; `cleanai.evaluate_model` makes it.

    Attributes:
        accuracy: top-1 in percent; None where the targets are not class labels (floating point targets).
        loss: the mean of the loss function over the targets.
        samples: how many rows were seen, over all batches.

    Example:
        >>> logits, labels = torch.eye(2), torch.tensor([0, 1])
        >>> found = evaluate_model(nn.Identity(), [(logits, labels)])
        >>> found.accuracy, round(found.loss, 3), found.samples
        (100.0, 0.313, 2)
    """

    accuracy: float | None
    loss: float
    samples: int


@dataclasses.dataclass(frozen=True)
class ModelMetrics:
    """One column of a before/after table: what a model costs and, where it was measured, how well it does.

    Attributes:
        parameters: number of parameters, tied ones once.
        size_mb: parameters and buffers in units of 10**6 bytes.
        macs: multiply-accumulate operations of one call on the example inputs, whole batch.
        latency: a `cleanai.evaluate.Latency` in milliseconds; None where it was not measured.
        accuracy: top-1 in percent; None where it was not measured.
        loss: the mean of the loss function over the targets; None where it was not measured.
        samples: how many rows accuracy and loss were measured on; None where they were not.

    Example:
        >>> metrics = ModelMetrics(parameters=15, size_mb=6e-5, macs=12, accuracy=91.5)
        >>> metrics.flops
        24
        >>> ModelMetrics.from_dict(metrics.to_dict()) == metrics
        True
    """

    parameters: int
    size_mb: float
    macs: int
    latency: Latency | None = None
    accuracy: float | None = None
    loss: float | None = None
    samples: int | None = None

    @property
    def flops(self) -> int:
        """Floating point operations: two for each MAC."""
        return 2 * self.macs

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelMetrics:
        """The metrics whose ``data`` `to_dict` wrote."""
        fields: dict[str, Any] = dict(data)
        if fields.get("latency") is not None:
            fields["latency"] = Latency(**fields["latency"])
        return cls(**fields)


def count_parameters(model: nn.Module) -> int:
    """The number of parameters of a ``model``; a tensor that several modules share counts once.

    Example:
        >>> count_parameters(nn.Linear(4, 3))
        15
    """
    return sum(parameter.numel() for parameter in model.parameters())


def count_trainable_parameters(model: nn.Module) -> int:
    """The number of parameters with ``requires_grad``; a tensor that several modules share counts once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def model_size_mb(model: nn.Module) -> float:
    """The size of all parameters and buffers in MB (10**6 bytes); shared tensors count once.

    Example:
        >>> model_size_mb(nn.Linear(999, 1000))
        4.0
    """
    return sum(tensor.numel() * tensor.element_size() for tensor in _parameters_and_buffers(model)) / MEGABYTE


def count_macs(model: nn.Module, example_inputs: Any, forward_fn: ForwardFn | None = None) -> int:
    """The multiply-accumulate operations of one evaluation-mode call, for the whole batch of the example inputs.

    PyTorch's own FLOP counter, halved: convolutions, matrix products and attention; element-wise work is not counted.
    It runs on the meta device, where nothing is computed and nothing fused is missed. A model that needs real values
    (data-dependent control flow) is run for real, with the fused kernels of attention and LSTM, which the counter
    cannot see into, switched off.

    Args:
        model: left untouched.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        forward_fn: called as ``forward_fn(model, example_inputs)`` instead of the model.

    Raises:
        Exception: whatever the model raises on these inputs.

    Example:
        >>> count_macs(nn.Conv2d(3, 8, kernel_size=3, padding=1), torch.zeros(1, 3, 10, 10))  # 8 · 3 · 3² · 10²
        21600
    """
    try:
        meta_inputs = map_tensors(lambda tensor: torch.empty_like(tensor, device="meta"), example_inputs)
        return _count_shadow_macs(model, "meta", meta_inputs, forward_fn)
    except Exception:  # whatever stops the meta run, a real run below either counts or shows the user's own error
        inputs = map_tensors(lambda tensor: tensor.detach().clone(), example_inputs)
    try:
        return _count_shadow_macs(model, "real", inputs, forward_fn)
    except Exception:  # a model may need hooks of its own (transformers collects hidden states by them)
        inputs = map_tensors(lambda tensor: tensor.detach().clone(), example_inputs)
        return _count_shadow_macs(model, "real", inputs, forward_fn, hooks=True)


def measure_latency(
    model: nn.Module,
    example_inputs: Any,
    *,
    forward_fn: ForwardFn | None = None,
    num_threads: int = 1,
    min_run_time: float = 1.0,
) -> Latency:
    """The time of one evaluation-mode call, by PyTorch's own timer in inference mode, after a warm-up.

    Args:
        model: its modes are restored, and so is torch's thread count.
        example_inputs: a tensor, a tuple or a dict, on the model's device.
        forward_fn: called as ``forward_fn(model, example_inputs)`` instead of the model.
        num_threads: CPU threads for torch. One gives the steadiest numbers on a busy machine.
        min_run_time: seconds to keep timing.

    Returns:
        The median and the interquartile range in milliseconds, with what they were measured under.

    Raises:
        InputError: ``num_threads`` or ``min_run_time`` is not positive.

    Example:
        >>> latency = measure_latency(nn.Linear(8, 8), torch.zeros(2, 8), min_run_time=0.01)
        >>> latency.batch_size, latency.num_threads, latency.median_ms > 0
        (2, 1, True)
    """
    check_count(num_threads, "measure_latency: num_threads")
    check_positive(min_run_time, "measure_latency: min_run_time")

    def run() -> None:
        with torch.inference_mode():
            call_model(model, example_inputs, forward_fn)

    with evaluation_mode(model), preserve_random_state():
        timer = _import_timer()("run()", globals={"run": run}, num_threads=num_threads)
        timer.timeit(WARM_UP_CALLS)
        measured = timer.blocked_autorange(min_run_time=min_run_time)
    return Latency(
        median_ms=measured.median * 1e3,
        iqr_ms=measured.iqr * 1e3,
        runs=measured.number_per_run * len(measured.raw_times),
        num_threads=num_threads,
        batch_size=_batch_size(example_inputs),
        disturbed=measured.has_warnings,
    )


def evaluate_model(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    loss_fn: LossFn = functional.cross_entropy,
    max_batches: int | None = None,
    progress: str | None = None,
    forward_fn: ForwardFn | None = None,
    output_transform: Callable[[Any], Tensor] | None = None,
) -> Evaluation:
    """Top-1 accuracy in percent and mean loss over a loader, in evaluation mode.

    Args:
        model: its modes are restored; batches are moved to its device.
        loader: yields ``(x, y)`` pairs, longer tuples with the targets last, or dicts with the targets under
            ``labels``, ``label``, ``targets`` or ``target``. Logits are (N, classes, ...), labels (N, ...).
        loss_fn: ``loss_fn(output, targets)``, the mean over the targets of a batch.
        max_batches: stop after so many batches; None means all of them.
        progress: title of a progress bar (silent where the output is not a terminal); None means no bar.
        forward_fn: called as ``forward_fn(model, inputs)`` instead of the model.
        output_transform: picks the logits out of the model's output; the default takes the first tensor.

    Returns:
        ``accuracy`` in percent (None where the targets are floating-point numbers), ``loss``, and ``samples`` in rows.

    Raises:
        InputError: the loader is empty, ``max_batches`` is below 1, a batch has no targets, or the loss cannot be
            computed from the output and the targets.

    Example:
        >>> loader = [(torch.eye(2), torch.tensor([0, 1])), (torch.eye(2), torch.tensor([1, 1]))]
        >>> evaluate_model(nn.Identity(), loader).accuracy
        75.0
    """
    check_loader(loader)
    if max_batches is not None:
        check_count(max_batches, "evaluate_model: max_batches", otherwise=", or None for the whole loader")
    pick_logits = output_transform or _first_tensor
    device = _device_of(model)
    loss_sum, targets_seen, correct, samples = 0.0, 0, 0, 0
    labelled = True
    with evaluation_mode(model), preserve_random_state(), torch.no_grad():  # what a model caches stays usable
        for index, batch in enumerate(_iterate_batches(loader, max_batches, progress)):
            inputs, targets = batch_to_inputs(map_tensors(lambda tensor: tensor.to(device), batch))
            if not isinstance(targets, Tensor):
                raise InputError(
                    f"evaluate_model: batch {index} of the loader has no targets. It must yield (x, y) pairs or dicts "
                    "with the labels under 'labels', 'label', 'targets' or 'target'."
                )
            logits = pick_logits(call_model(model, inputs, forward_fn))
            loss_sum += _compute_loss(loss_fn, logits, targets, index) * targets.numel()
            targets_seen += targets.numel()
            samples += len(targets)
            labelled = labelled and not targets.is_floating_point()
            if labelled:
                correct += int((logits.argmax(dim=1) == targets).sum())
    if samples == 0:
        raise InputError(
            f"evaluate_model: the loader gave no batches ({type(loader).__name__}). Check that its data set is not "
            "empty, and that a generator has not been used up."
        )
    accuracy = 100.0 * correct / targets_seen if labelled else None
    return Evaluation(accuracy=accuracy, loss=loss_sum / targets_seen, samples=samples)


def _compute_loss(loss_fn: LossFn, logits: Tensor, targets: Tensor, index: int) -> float:
    try:
        return loss_fn(logits, targets).item()
    except (RuntimeError, ValueError, LookupError) as error:
        raise InputError(
            f"evaluate_model: the loss of batch {index} cannot be computed from an output of shape "
            f"{tuple(logits.shape)} and targets of shape {tuple(targets.shape)} ({error}). Pass a loss_fn(output, "
            "targets) that fits them."
        ) from error


def measure_model(
    model: nn.Module,
    example_inputs: Any,
    *,
    loader: Iterable[Any] | None = None,
    latency: bool = False,
    loss_fn: LossFn = functional.cross_entropy,
    max_batches: int | None = None,
    progress: str | None = None,
    forward_fn: ForwardFn | None = None,
    output_transform: Callable[[Any], Tensor] | None = None,
    num_threads: int = 1,
    min_run_time: float = 1.0,
) -> ModelMetrics:
    """Everything one column of a before/after table needs; the model is left as it was.

    Args:
        model: any model.
        example_inputs: a tensor, a tuple or a dict; MACs and latency are those of one call on it.
        loader: if given, accuracy and loss are measured on it, see `evaluate_model`, which also takes ``loss_fn``,
            ``max_batches``, ``progress`` (a title) and ``output_transform``.
        latency: if True, the latency is measured too, see `measure_latency`, which also takes ``num_threads`` and
            ``min_run_time``.
        forward_fn: called as ``forward_fn(model, inputs)`` instead of the model.

    Raises:
        InputError: the model is no module, or what `evaluate_model` and `measure_latency` raise.

    Example:
        >>> metrics = measure_model(nn.Linear(4, 3), torch.zeros(1, 4))
        >>> metrics.parameters, metrics.macs, metrics.flops, metrics.accuracy
        (15, 12, 24, None)
    """
    check_model(model)
    evaluation = None
    if loader is not None:
        evaluation = evaluate_model(
            model,
            loader,
            loss_fn=loss_fn,
            max_batches=max_batches,
            progress=progress,
            forward_fn=forward_fn,
            output_transform=output_transform,
        )
    timing = None
    if latency:
        timing = measure_latency(
            model, example_inputs, forward_fn=forward_fn, num_threads=num_threads, min_run_time=min_run_time
        )
    return ModelMetrics(
        parameters=count_parameters(model),
        size_mb=model_size_mb(model),
        macs=count_macs(model, example_inputs, forward_fn),
        latency=timing,
        accuracy=evaluation.accuracy if evaluation else None,
        loss=evaluation.loss if evaluation else None,
        samples=evaluation.samples if evaluation else None,
    )


def _count_shadow_macs(
    model: nn.Module, kind: ShadowKind, inputs: Any, forward_fn: ForwardFn | None, *, hooks: bool = False
) -> int:
    counter = FlopCounterMode(display=False)
    with shadow_model(model, kind, track_buffers=False, prepare=None if hooks else _drop_hooks):
        model.eval()
        model.requires_grad_(False)  # the counter hooks what needs gradients, which fails for a parameter as an input
        with _fused_kernels_off(), torch.no_grad(), counter:
            call_model(model, inputs, forward_fn)
    return counter.get_total_flops() // 2


def _drop_hooks(model: nn.Module) -> None:
    """No hooks of the user's, whose statistics the counting must not feed.

    torch's own hooks stay: weight_norm, spectral_norm and prune compute the weights in one.
    """
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if not type(hook).__module__.startswith("torch."):
                    del hooks[key]


@contextlib.contextmanager
def _fused_kernels_off() -> Generator[None]:
    """Attention and LSTM computed by operations that the FLOP counter knows."""
    fast_attention, onednn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.enabled = False  # ty: ignore[invalid-assignment]  (a property of torch, typed as its object)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_attention)
        torch.backends.mkldnn.enabled = onednn


def _import_timer() -> type[Timer]:
    """torch's timer, without the notice that its import logs where a GPU compiler but no GPU is found."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        from torch.utils.benchmark import Timer
    finally:
        logger.setLevel(level)
    return Timer


def _parameters_and_buffers(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _iterate_batches(loader: Iterable[Any], max_batches: int | None, title: str | None) -> Iterator[Any]:
    """The loader's first batches, with a progress bar where a title is given and a person is watching."""
    size = operator.length_hint(loader, 0) or None  # a DataLoader over a stream has a __len__ that raises
    total = max_batches if size is None else min(size, max_batches or size)
    bar = tqdm(total=total, desc=title, unit="batch", leave=False, disable=True if title is None else None)
    with bar:
        for index, batch in enumerate(loader):
            if index == max_batches:
                return
            yield batch
            bar.update()


def _first_tensor(output: Any) -> Tensor:
    tensors = output_tensors(output)
    if not tensors:
        raise InputError(
            f"evaluate_model: the model's output ({type(output).__name__}) holds no tensor. Pass "
            "output_transform=lambda output: ... to pick the logits."
        )
    return tensors[0]


def _device_of(model: nn.Module) -> torch.device:
    check_model(model)
    return next((tensor.device for tensor in _parameters_and_buffers(model)), torch.device("cpu"))


def _batch_size(example_inputs: Any) -> int:
    return next((len(tensor) for tensor in output_tensors(example_inputs) if tensor.ndim > 0), 0)
