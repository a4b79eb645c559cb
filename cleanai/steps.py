"""One step of pruning as the caller's callback sees it, and what keeps a walk of several steps safe."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from cleanai.errors import InputError
from cleanai.isolation import Snapshot, list_state, surely
from cleanai.plan import Plan
from cleanai.verify import Verification


@dataclass(frozen=True)
class PruningStep:
    """One step of `StructuredPruner.prune`, as its callback sees it.

    Attributes:
        number, steps: this is step ``number`` of ``steps``, counted from 1.
        model: the model as it is now, pruned and proven; training it in place is what the callback may do.
        plan: everything that has gone so far, in the numbering of the original model.
        cut: what this step has removed, in the numbering of the model before it (see `cleanai.migrate_optimizer`).
        target: "channels", "params", "macs" or "latency".
        asked, reached: the share of the target that should be gone after this step, and that is.
        verification: the proof of this step; None with ``verify=False`` and where nothing was cut.

    Example:
        >>> from cleanai import StructuredPruner
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> pruner = StructuredPruner(net, torch.randn(1, 3), pruning_ratio=0.5, iterative_steps=2)
        >>> def watch(step):  # here it could train step.model
        ...     print(f"step {step.number} of {step.steps}: {step.reached:.0%} gone, {step.model[0].out_features} left")
        >>> _ = pruner.prune(watch)
        step 1 of 2: 25% gone, 6 left
        step 2 of 2: 50% gone, 4 left
    """

    number: int
    steps: int
    model: nn.Module = field(repr=False)
    plan: Plan
    cut: Plan
    target: str
    asked: float
    reached: float
    verification: Verification | None = None


@contextlib.contextmanager
def all_or_nothing(model: nn.Module, values: bool) -> Generator[None]:
    """Takes everything back when something is raised; with ``values``, also what was written into tensors that stayed.

    That takes the memory of a copy of the model.
    """
    snapshot = Snapshot(model)
    tensors = [state.tensor for state in list_state(model)] if values else []
    tensors += [tensor.grad for tensor in tensors if tensor.grad is not None]
    kept = [(tensor, tensor.detach(), tensor.detach().clone()) for tensor in tensors]

    def undo() -> None:
        with torch.inference_mode(False), torch.no_grad():
            for tensor, memory, old in kept:
                memory.copy_(old)
                tensor.data = memory  # ``model.half()`` and the like put other memory under the same object
        snapshot.restore()

    try:
        yield
    except BaseException:
        surely(undo)
        raise


def call_back(callback: Callable[[PruningStep], object], step: PruningStep) -> None:
    """Hands a step to the caller, who may train the model but not rebuild it; modules keep their modes."""
    modes = [(module, module.training) for module in step.model.modules()]
    shapes = {state.name: tuple(state.tensor.shape) for state in list_state(step.model) if state.is_parameter}
    callback(step)
    for module, training in modes:
        module.training = training
    after = {state.name: tuple(state.tensor.shape) for state in list_state(step.model) if state.is_parameter}
    changed = [name for name in {**shapes, **after} if shapes.get(name) != after.get(name)]
    if changed:
        raise InputError(
            f"the callback of step {step.number} changed the shape of {changed[0]} from {shapes.get(changed[0])} to "
            f"{after.get(changed[0])}: it may train the model, not rebuild it"
        )
    check_tensors(step.model)


def join_proofs(proofs: Sequence[Verification]) -> Verification | None:
    """The proofs of all steps as one: the worst of them, and what they took together."""
    if not proofs:
        return None
    worst = max(proofs, key=lambda proof: proof.max_relative_error / proof.tolerance)
    return replace(worst, runs=sum(p.runs for p in proofs), seconds=sum(p.seconds for p in proofs))


def check_tensors(model: nn.Module) -> None:
    """Raises `InputError` where weights or running statistics are not finite, or cannot be worked with."""
    for state in list_state(model):
        tensor = state.tensor
        if tensor.is_inference() and state.is_parameter:
            raise InputError(f"{state.name} was made under torch.inference_mode; make the model outside of it")
        judged = state.is_statistic or isinstance(tensor, nn.Parameter)  # other buffers may be masks of -inf
        if judged and tensor.is_floating_point() and tensor.device.type != "meta" and not bool(tensor.isfinite().all()):
            raise InputError(
                f"{state.name} holds NaN or infinite values: repair or retrain the model before pruning it"
            )
