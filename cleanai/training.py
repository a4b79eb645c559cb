"""Training of a classifier: a short loop of SGD with momentum and a cosine schedule."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Generator, Iterable, Sized
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from cleanai.errors import InputError
from cleanai.inputs import batch_to_inputs, call_model, map_tensors, output_tensors
from cleanai.isolation import preserve_random_state


class SizedLoader(Sized, Iterable[Any], Protocol):
    """Batches that can be counted beforehand, as the schedule needs: a `DataLoader` over a data set, or a list."""


@dataclasses.dataclass(frozen=True)
class EpochRecord:
    """One epoch: its number from 1, mean loss and accuracy in percent over its training batches, last learning rate."""

    epoch: int
    train_loss: float
    train_accuracy: float
    lr: float


def train_classifier(
    model: nn.Module,
    loader: SizedLoader,
    *,
    epochs: int,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    loss_fn: Callable[[Any, Tensor], Tensor] = functional.cross_entropy,
    max_seconds: float | None = None,
    seed: int = 0,
    progress: str | None = None,
) -> list[EpochRecord]:
    """Trains a model in place by SGD with Nesterov momentum under a cosine schedule; gives one record per epoch.

    The learning rate falls from ``lr`` to 0 along half a cosine, step by step. Afterwards every module has its mode
    back, gradients are cleared, and torch's random state is as before.

    Args:
        loader: yields ``(x, y)`` pairs or dicts as `evaluate_model` takes them; its length sets the schedule. Batches
            are moved to the model's device.
        epochs: passes over the loader.
        momentum: Nesterov momentum; 0 is plain SGD.
        weight_decay: applied to tensors of two dimensions and more, so not to biases and normalisation layers.
        max_seconds: a bound on the time. Where the clock is further on than the steps, the schedule follows the clock,
            so that the rate still reaches 0 when training is cut short. None means no bound.
        seed: of dropout and whatever else draws from torch's random state, a loader without generator included.
        progress: title of a progress bar (silent where the output is not a terminal); None means no bar.

    Raises:
        InputError: if an argument is out of range, the loader is empty, a batch has no targets, nothing is trainable,
            or the loss is not finite.

    Example:
        >>> batch = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1])
        >>> train_classifier(nn.Linear(1, 2), [batch], epochs=20, lr=1.0)[-1].train_accuracy
        100.0
    """
    steps = _count_steps(loader, epochs, lr, max_seconds)
    optimizer = torch.optim.SGD(_split_by_decay(model, weight_decay), lr=lr, momentum=momentum, nesterov=momentum > 0)
    records: list[EpochRecord] = []
    start, step = time.perf_counter(), 0
    bar = tqdm(total=steps, desc=progress, unit="step", leave=False, disable=True if progress is None else None)
    with preserve_random_state(), _training_mode(model, optimizer), bar:
        torch.manual_seed(seed)
        for epoch in range(1, epochs + 1):
            loss_sum, correct, seen = 0.0, 0, 0
            for batch in loader:
                elapsed = time.perf_counter() - start
                share = max(step / steps, elapsed / max_seconds if max_seconds else 0.0)
                if share >= 1:  # the time is up; the steps alone stay below 1
                    break
                current_lr = _set_learning_rate(optimizer, lr * (1 + math.cos(math.pi * share)) / 2)
                loss, hits, count = _take_step(model, batch, optimizer, loss_fn)
                if not math.isfinite(loss):
                    raise InputError(f"train_classifier: the loss is {loss} at step {step}. Use a lr below {lr}.")
                loss_sum, correct, seen, step = loss_sum + loss * count, correct + hits, seen + count, step + 1
                bar.update()
            if seen == 0:
                break
            records.append(EpochRecord(epoch, loss_sum / seen, 100.0 * correct / seen, current_lr))
    return records


def _count_steps(loader: SizedLoader, epochs: int, lr: float, max_seconds: float | None) -> int:
    if epochs < 1 or lr <= 0 or (max_seconds is not None and max_seconds <= 0):
        raise InputError(
            "train_classifier needs epochs >= 1, lr > 0 and max_seconds > 0 or None, "
            f"got {epochs}, {lr} and {max_seconds}."
        )
    if len(loader) == 0:
        raise InputError("train_classifier: the loader gives no batches. Check that its data set is not empty.")
    return epochs * len(loader)


def _split_by_decay(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise InputError("train_classifier: no parameter has requires_grad=True, so there is nothing to train.")
    decayed = [parameter for parameter in trainable if parameter.ndim > 1]
    rest = [parameter for parameter in trainable if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr


def _take_step(
    model: nn.Module, batch: Any, optimizer: torch.optim.Optimizer, loss_fn: Callable[[Any, Tensor], Tensor]
) -> tuple[float, int, int]:
    """One step of gradient descent; gives the mean loss of the batch, its correct predictions and its targets."""
    device = next(model.parameters()).device
    inputs, targets = batch_to_inputs(map_tensors(lambda tensor: tensor.to(device), batch))
    if not isinstance(targets, Tensor):
        raise InputError(
            "train_classifier: a batch has no targets. The loader must yield (x, y) pairs or dicts with labels."
        )
    logits = output_tensors(call_model(model, inputs))[0]
    loss = loss_fn(logits, targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item(), int((logits.argmax(dim=1) == targets).sum()), targets.numel()


@contextlib.contextmanager
def _training_mode(model: nn.Module, optimizer: torch.optim.Optimizer) -> Generator[None]:
    """The model in training mode; afterwards every module has its own mode back and no gradients are left."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        yield
    finally:
        optimizer.zero_grad()
        for module, training in modes:
            module.training = training
