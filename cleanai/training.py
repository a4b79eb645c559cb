"""Training of a classifier on Lightning Fabric: mixed precision, several processes, distillation, exact resume."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import math
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from cleanai.distributed import (
    SizedLoader,
    broadcast_buffers,
    choose_local_device,
    count_batches,
    count_rows,
    gather,
    is_main,
    local_world,
    refuse_divided,
    run_on_main,
    share_batches,
    share_rows,
    start_processes,
    world,
)
from cleanai.errors import InputError
from cleanai.evaluate import LossFn, evaluate_model
from cleanai.inputs import batch_to_inputs, call_model, map_tensors, output_tensors
from cleanai.isolation import evaluation_mode, preserve_random_state
from cleanai.recipe import EpochRecord, Recipe, TrainingResult, find_best
from cleanai.training_state import (
    capture_random_state,
    copy_tensors,
    fingerprint,
    generators_of,
    named_tensors,
    put_tensors,
    read_state,
    restore_random_state,
    seed_everything,
    write_state,
)

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["EpochRecord", "Recipe", "TrainingResult", "train_classifier"]

OnEpoch = Callable[[EpochRecord, nn.Module], object]
LOSSES_IN_FLIGHT = 16  # steps until a loss is looked at, so that a GPU need not wait for each


def train_classifier(
    model: nn.Module,
    loader: SizedLoader,
    recipe: Recipe,
    *,
    validation: SizedLoader | None = None,
    teacher: nn.Module | None = None,
    loss_fn: LossFn | None = None,
    keep: Literal["last", "best"] = "last",
    folder: str | Path | None = None,
    state_minutes: float = 10.0,
    max_batches: int | None = None,
    max_seconds: float | None = None,
    device: str = "auto",
    on_epoch: OnEpoch | None = None,
    progress: str | None = None,
) -> TrainingResult:
    """Trains a model in place and gives one record per epoch.

    Afterwards every module has its mode back, the tensors are where they were and of the type they were of, gradients
    are cleared, and all random states are as before.

    **Random numbers.** Each epoch begins from random states (torch, NumPy, Python, the generators of the loader and
    its samplers) that follow from the recipe's seed, the epoch's number and the process's number; samplers with
    ``set_epoch`` are told the epoch. So order and augmentation depend on nothing else, the seed that a loader was made
    with included. A data set that keeps a random state of its own elsewhere is not covered.

    **Resume.** With a ``folder`` the state is written after each epoch and every ``state_minutes``. Killed at any
    moment and called again with the same arguments, training ends with the same weights and records, on a CPU to the
    last bit; a training that is finished gives its result at once. To go on within an epoch, the batches that were
    used already are loaded again, but not computed.

    **Several processes.** Under ``torchrun`` (on one machine or several) each process takes its rows of every batch:
    the loader's batch is that of all processes together, and the gradient is the mean over it. The rows of a
    `DataLoader` over a data set are divided before they are loaded. A batch with fewer rows than processes is left
    out; validation batches are divided whole. All processes end with the same tensors, BatchNorm's statistics
    being the first one's, and only the first shows progress and writes files. Without ``torchrun`` one device is used.
    A process that fails ends, whereupon torchrun ends the others.

    Args:
        model: any network whose output is logits; its weights change.
        loader: yields ``(x, y)`` pairs or dicts as `evaluate_model` takes them; its length sets the schedule. Targets
            are class labels, or probabilities of the logits' shape.
        recipe: learning rate, optimizer, schedule and so on.
        validation: measured after each epoch.
        teacher: the network to learn from where the recipe has a ``distillation_weight``; left as it was.
        loss_fn: ``loss_fn(logits, targets)``, a mean over the targets; the default is the cross-entropy.
        keep: the weights the model ends with, those of the "last" epoch or of the "best" on the validation batches.
        folder: where the state of the training lies; None keeps none.
        state_minutes: minutes between two states within an epoch.
        max_batches: use only so many batches of each epoch.
        max_seconds: a bound on the time. Where the clock is further on than the steps, the schedule follows the clock,
            so that the rate still falls to its end when training is cut short. None means no bound.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto": the GPU the model is on, otherwise a GPU if there is one.
        on_epoch: called as ``on_epoch(record, model)`` after each epoch in every process, before the state is written.
            After a kill it may be called again for the same epoch.
        progress: title of a progress bar (silent where the output is not a terminal); None means no bar.

    Returns:
        One record for each epoch, which epoch was best, and whether the training ended early.

    Raises:
        InputError: if an argument is out of range or missing, the folder holds another training, the loader is empty,
            a batch has no targets, nothing is trainable, or the loss is not finite.

    Example:
        >>> batch = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1])
        >>> train_classifier(nn.Linear(1, 2), [batch], Recipe(epochs=20, lr=1.0)).history[-1].train_accuracy
        100.0
    """
    job = _Job(
        model,
        loader,
        recipe,
        validation=validation,
        teacher=teacher,
        loss_fn=loss_fn,
        keep=keep,
        folder=None if folder is None else Path(folder),
        state_minutes=state_minutes,
        max_batches=max_batches,
        max_seconds=max_seconds,
        on_epoch=on_epoch,
        progress=progress,
    )
    _check_job(job)
    chosen = _choose_device(device, model, recipe)
    with start_processes(chosen.type), _quiet_fabric(), _as_before(job):
        settings = _describe_job(job)
        state = run_on_main(lambda: None if job.folder is None else read_state(job.folder, settings))
        return _Training(job, settings, _start_fabric(recipe, chosen)).run(state)


@dataclasses.dataclass(frozen=True)
class _Job:
    """The arguments of `train_classifier`."""

    model: nn.Module
    loader: SizedLoader
    recipe: Recipe
    validation: SizedLoader | None
    teacher: nn.Module | None
    loss_fn: LossFn | None
    keep: str
    folder: Path | None
    state_minutes: float
    max_batches: int | None
    max_seconds: float | None
    on_epoch: OnEpoch | None
    progress: str | None

    @property
    def batches(self) -> int:
        """The batches of one epoch."""
        return count_batches(self.loader, self.max_batches)


@dataclasses.dataclass
class _Sums:
    """What an epoch has seen so far; losses of the last steps may still be on their way from a GPU."""

    loss: float = 0.0
    hits: int = 0
    targets: int = 0
    lr: float = 0.0
    seconds: float = 0.0
    waiting: list[tuple[int, Tensor, Tensor, int]] = dataclasses.field(default_factory=list)

    def collect(self, lr: float) -> None:
        """Adds what was waiting; raises `InputError` if a loss is not finite."""
        for step, loss, hits, targets in self.waiting:
            value = loss.item()
            if not math.isfinite(value):
                raise InputError(
                    f"train_classifier: the loss is {value} at step {step}. Use a lr below {lr:g}, clip_norm=1.0, or a "
                    "warm-up, and check that the inputs are finite."
                )
            self.loss, self.hits = self.loss + value * targets, self.hits + int(hits.item())
            self.targets += targets
        self.waiting.clear()

    def to_dict(self) -> dict[str, float]:
        """Plain values, once nothing is waiting."""
        return {part.name: getattr(self, part.name) for part in dataclasses.fields(self) if part.name != "waiting"}


class _Training:
    """One training: where it stands, and how it goes on."""

    def __init__(self, job: _Job, settings: Mapping[str, Any], fabric: Fabric) -> None:
        self.job, self.recipe, self.model, self.fabric = job, job.recipe, job.model, fabric
        self.settings = settings
        self.wrapped, self.optimizer = fabric.setup(job.model, _make_optimizer(job.model, job.recipe))
        if job.teacher is not None:
            job.teacher.to(fabric.device)
        self.generators = generators_of(job.loader)
        self.epoch, self.done, self.sums = 1, 0, _Sums()  # done: batches of this epoch
        self.history: list[EpochRecord] = []
        self.best: dict[str, Tensor] | None = None
        self.stopped: Literal["patience", "time"] | None = None
        self.spent = 0.0  # seconds, by earlier processes
        self.started, self.saved = time.perf_counter(), 0.0  # saved: seconds spent when the state was last written

    def run(self, state: Mapping[str, Any] | None) -> TrainingResult:
        random_states = None if state is None else self._restore(state)
        if state is not None and state["finished"]:
            return self._result()
        total, initial = self.recipe.epochs * self.job.batches, (self.epoch - 1) * self.job.batches + self.done
        hidden = True if self.job.progress is None or not is_main() else None
        title = {"desc": self.job.progress, "unit": "batch", "leave": False, "disable": hidden}
        with tqdm(total=total, initial=initial, **title) as self.bar:
            while self._train_epoch(random_states):
                random_states = None
        return self._result()

    def _train_epoch(self, random_states: Mapping[str, Any] | None) -> bool:
        """Trains one epoch, or the rest of one; whether another one follows."""
        start = time.perf_counter() - self.sums.seconds
        self.wrapped.train()
        self._take_steps(self._draw_batches(random_states), start)
        self.sums.collect(self.recipe.lr)
        broadcast_buffers(self.model)
        seen = gather((self.sums.loss, self.sums.hits, self.sums.targets))
        loss, hits, targets = map(sum, zip(*seen, strict=True))
        if targets == 0 and self.stopped is None:
            raise InputError(
                f"train_classifier: the loader gave no batches in epoch {self.epoch} ({type(self.job.loader).__name__})"
                ". Check that a generator has not been used up, and that batches have a row for every process."
            )
        if targets:
            validated = self._validate()
            seconds = time.perf_counter() - start
            lr = self.sums.lr
            record = EpochRecord(self.epoch, loss / targets, 100.0 * hits / targets, lr, *validated, seconds=seconds)
            self._close_epoch(record)
        self.epoch, self.done, self.sums = self.epoch + 1, 0, _Sums()
        more = self.stopped is None and self.epoch <= self.recipe.epochs
        if not more and self.best is not None:
            put_tensors(self.model, self.best)
        self._save(finished=not more)
        return more

    def _close_epoch(self, record: EpochRecord) -> None:
        self.history.append(record)
        best = find_best(self.history)
        if self.job.keep == "best" and best == record.epoch:
            self.best = copy_tensors(self.model)
        patience, more = self.recipe.patience, record.epoch < self.recipe.epochs and self.stopped is None
        if more and patience is not None and best is not None and record.epoch - best >= patience:
            self.stopped = "patience"
        if self.job.on_epoch is not None:
            with preserve_random_state():
                self.job.on_epoch(record, self.model)

    # ------------------------------------------------------------------------------------------------------- batches

    def _draw_batches(self, random_states: Mapping[str, Any] | None) -> Iterator[tuple[Any, int]]:
        """This process's rows of the epoch's batches that have not been used yet, with the rows of whole batches."""
        rank, _ = world()
        seed_everything([self.recipe.seed, self.epoch], self.generators)  # the same order in every process
        sampler, batch_sampler = (getattr(self.job.loader, name, None) for name in ("sampler", "batch_sampler"))
        for owner in (sampler, batch_sampler):
            if hasattr(owner, "set_epoch"):
                owner.set_epoch(self.epoch)
        reseed = functools.partial(seed_everything, [self.recipe.seed, self.epoch, 1 + rank], self.generators)
        batches = share_rows(self.job.loader, self.job.max_batches, on_ordered=reseed)
        for _ in range(self.done):
            next(batches, None)
        if random_states is not None:
            restore_random_state(random_states, self.fabric.device, self.generators)
        return batches

    def _take_steps(self, batches: Iterator[tuple[Any, int]], start: float) -> None:
        size = self.recipe.accumulate
        while group := list(itertools.islice(batches, size)):
            elapsed = self._elapsed()
            share = ((self.epoch - 1) * self.job.batches + self.done) / (self.recipe.epochs * self.job.batches)
            if self.job.max_seconds is not None:
                share = max(share, elapsed / self.job.max_seconds)
                if share >= 1:
                    self.stopped = "time"
                    return
            step = size / (self.recipe.epochs * self.job.batches)
            self.sums.lr = self.recipe.learning_rate(share, step)
            self._take_step(group)
            self.done += len(group)
            self.bar.update(len(group))
            if len(self.sums.waiting) >= LOSSES_IN_FLIGHT:
                self.sums.collect(self.recipe.lr)
            if self.job.folder is not None and elapsed - self.saved >= 60 * self.job.state_minutes:
                self.sums.collect(self.recipe.lr)
                self.sums.seconds = time.perf_counter() - start
                self._save(finished=False)

    def _elapsed(self) -> float:
        """Seconds since the training began; in several processes the first one's clock, which decides for all."""
        elapsed = self.spent + time.perf_counter() - self.started
        timed = self.job.max_seconds is not None or self.job.folder is not None
        return run_on_main(lambda: elapsed) if timed else elapsed

    # --------------------------------------------------------------------------------------------------------- steps

    def _take_step(self, group: list[tuple[Any, int]]) -> None:
        """One step along the mean gradient over all rows of a group of batches, those of other processes included."""
        for settings in self.optimizer.param_groups:
            settings["lr"] = self.sums.lr
        _, processes = world()
        total = sum(rows for _, rows in group)
        self.optimizer.zero_grad()
        for number, (part, _) in enumerate(group, 1):
            later = processes > 1 and number < len(group)  # gradients are exchanged once, with the last batch
            with self.fabric.no_backward_sync(self.wrapped, enabled=later):
                loss, hits, targets = self._compute_loss(part)
                weight = count_rows(part) * processes / total if processes * len(group) > 1 else 1.0
                self.fabric.backward(loss if weight == 1.0 else loss * weight)
            step = (self.epoch - 1) * self.job.batches + self.done + number - 1
            self.sums.waiting.append((step, loss.detach(), hits, targets))
        if processes > 1:
            self._check_gradients()
        if self.recipe.clip_norm is not None:
            # A loss that is not finite is reported by `_Sums`, in words.
            self.fabric.clip_gradients(
                self.wrapped, self.optimizer, max_norm=self.recipe.clip_norm, error_if_nonfinite=False
            )
        self.optimizer.step()

    def _check_gradients(self) -> None:
        """Gradients were exchanged only if every parameter has one."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and parameter.grad is None:
                raise InputError(
                    f"train_classifier: the loss does not depend on {name}, but in several processes every parameter "
                    "must take part in each step. Freeze those that do not by requires_grad_(False)."
                )

    def _compute_loss(self, batch: Any) -> tuple[Tensor, Tensor, int]:
        """What is minimised (the mean over this batch), the right predictions, and the number of targets."""
        device = self.fabric.device
        inputs, targets = batch_to_inputs(map_tensors(lambda tensor: tensor.to(device, non_blocking=True), batch))
        if not isinstance(targets, Tensor):
            raise InputError(
                "train_classifier: a batch has no targets. The loader must yield (x, y) pairs or dicts with labels."
            )
        logits = output_tensors(call_model(self.wrapped, inputs))[0]
        labels = _labels_of(logits, targets)
        weight = self.recipe.distillation_weight
        if self.job.loss_fn is not None:
            loss = self.job.loss_fn(logits, targets)
        else:
            loss = functional.cross_entropy(logits, targets, label_smoothing=self.recipe.label_smoothing)
        if self.job.teacher is not None:
            teaching = _distillation_loss(logits, self._ask_teacher(inputs), self.recipe.distillation_temperature)
            loss = (1 - weight) * loss + weight * teaching
        return loss, (logits.detach().argmax(dim=1) == labels).sum(), labels.numel()

    def _ask_teacher(self, inputs: Any) -> Tensor:
        with torch.no_grad(), self.fabric.autocast():
            return output_tensors(call_model(self.job.teacher, inputs))[0]  # ty: ignore[invalid-argument-type]

    def _validate(self) -> tuple[float | None, float | None]:
        """Mean loss and accuracy in percent over the validation batches of all processes."""
        if self.job.validation is None:
            return None, None
        loss_fn = self.job.loss_fn or functional.cross_entropy
        with preserve_random_state():
            seed_everything([self.recipe.seed, self.epoch], generators_of(self.job.validation))
            share = share_batches(self.job.validation)
            found = (0.0, 0.0, 0)
            if len(share):  # a process may have none of a few batches
                result = evaluate_model(self.model, share, loss_fn=loss_fn, forward_fn=self._forward)
                found = (result.loss * result.samples, (result.accuracy or 0.0) * result.samples, result.samples)
        loss, accuracy, samples = map(sum, zip(*gather(found), strict=True))
        return loss / samples, accuracy / samples

    def _forward(self, model: nn.Module, inputs: Any) -> Any:
        """A call in the training's precision, past the wrapper that would exchange buffers between processes."""
        precision = self.fabric.strategy.precision
        with self.fabric.autocast():
            return precision.convert_output(call_model(model, precision.convert_input(inputs)))

    # --------------------------------------------------------------------------------------------------------- state

    def _save(self, *, finished: bool) -> None:
        if self.job.folder is None:
            return
        self.saved = self._elapsed()
        own = {"sums": self.sums.to_dict(), "random": capture_random_state(self.fabric.device, self.generators)}
        within = gather(own) if self.done else None  # at the end of an epoch nothing is left that a process has alone
        state: dict[str, Any] = {
            "settings": self.settings,
            "finished": finished,
            "stopped": self.stopped,
            "spent": self.saved,
            "history": [dataclasses.asdict(record) for record in self.history],
            "model": copy_tensors(self.model),
        }
        if not finished:
            state |= {
                "epoch": self.epoch,
                "done": self.done,
                "within": within,
                "optimizer": self.optimizer.state_dict(),
                "precision": self.fabric.strategy.precision.state_dict(),
                "best": self.best,
            }
        folder = self.job.folder
        run_on_main(lambda: write_state(folder, state))

    def _restore(self, state: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Goes to where the state was written; gives this process's random states there, None between epochs."""
        put_tensors(self.model, state["model"])
        self.history = [EpochRecord(**record) for record in state["history"]]
        self.stopped, self.spent = state["stopped"], state["spent"]
        self.saved = self.spent
        if state["finished"]:
            return None
        self.epoch, self.done = state["epoch"], state["done"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.best = state["best"]
        if state["within"] is None:
            return None
        own = state["within"][world()[0]]
        self.sums = _Sums(**own["sums"])
        return own["random"]

    def _result(self) -> TrainingResult:
        return TrainingResult(self.history, find_best(self.history), self.stopped)


# --------------------------------------------------------------------------------------------------------- the losses


def _distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), the mean over all targets; classes along dimension 1."""
    if student.shape != teacher.shape:
        raise InputError(
            f"train_classifier: the teacher gives logits of shape {tuple(teacher.shape)}, the model "
            f"{tuple(student.shape)}. Both must tell the same classes apart."
        )
    log_student = functional.log_softmax(student / temperature, dim=1)
    log_teacher = functional.log_softmax(teacher.to(student.dtype) / temperature, dim=1)
    divergence = functional.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=1)
    return temperature**2 * divergence.mean()


def _labels_of(logits: Tensor, targets: Tensor) -> Tensor:
    """The class of each target; of probabilities the likeliest one."""
    if targets.is_floating_point():
        if targets.shape != logits.shape:
            raise InputError(
                f"train_classifier: targets of type {targets.dtype} must be class probabilities of the logits' shape "
                f"{tuple(logits.shape)}, but have shape {tuple(targets.shape)}. Class labels are whole numbers."
            )
        return targets.argmax(dim=1)
    return targets


# --------------------------------------------------------------------------------------- what there must be beforehand


def _check_job(job: _Job) -> None:
    refuse_divided(job.loader)
    for name, value in (("max_seconds", job.max_seconds), ("max_batches", job.max_batches)):
        if value is not None and value <= 0:
            raise InputError(f"train_classifier: {name} is {value}; it must be above 0, or None.")
    if job.state_minutes < 0:
        raise InputError(f"train_classifier: state_minutes is {job.state_minutes}; it must be at least 0.")
    if job.keep not in ("last", "best"):
        raise InputError(f"train_classifier: keep is {job.keep!r}; it must be 'last' or 'best'.")
    for name, loader in (("loader", job.loader), ("validation loader", job.validation)):
        if loader is not None and not _has_batches(loader, name):
            raise InputError(f"train_classifier: the {name} gives no batches. Check that its data set is not empty.")
    if job.validation is None and (job.keep == "best" or job.recipe.patience is not None):
        wish = "keep='best'" if job.keep == "best" else f"patience={job.recipe.patience}"
        raise InputError(f"train_classifier: {wish} needs validation=, a loader of images held apart for it.")
    if (job.teacher is None) != (job.recipe.distillation_weight == 0):
        raise InputError(
            "train_classifier: a teacher and a recipe with a distillation_weight above 0 belong together; "
            f"teacher is {'not ' if job.teacher is None else ''}given and the weight is "
            f"{job.recipe.distillation_weight:g}."
        )
    if job.loss_fn is not None and job.recipe.label_smoothing > 0:
        raise InputError("train_classifier: label_smoothing belongs to the cross-entropy; leave loss_fn or it out.")
    if not any(parameter.requires_grad for parameter in job.model.parameters()):
        raise InputError("train_classifier: no parameter has requires_grad=True, so there is nothing to train.")


def _has_batches(loader: SizedLoader, name: str) -> bool:
    try:
        return len(loader) > 0
    except TypeError as error:
        raise InputError(
            f"train_classifier: the {name} ({type(loader).__name__}) has no length, by which the schedule is set. Give "
            "a DataLoader over a data set, or a list of batches."
        ) from error


def _describe_job(job: _Job) -> dict[str, Any]:
    """All that the outcome depends on but the data, by which the state of another training is known."""
    if job.folder is None:
        return {}
    return {
        **dataclasses.asdict(job.recipe),
        "keep": job.keep,
        "the number of batches": job.batches,
        "max_seconds": job.max_seconds,
        "the number of processes": world()[1],
        "validation": job.validation is not None,
        "shapes": {f"the shape of {name}": list(tensor.shape) for name, tensor in named_tensors(job.model).items()},
        "the hash of the model's weights": fingerprint(job.model),
        "the hash of the teacher's weights": None if job.teacher is None else fingerprint(job.teacher),
    }


def _make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer; tensors of one dimension do not decay."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trainable if parameter.ndim > 1]
    rest = [parameter for parameter in trainable if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=recipe.lr)


def _choose_device(device: str, model: nn.Module, recipe: Recipe) -> torch.device:
    if world()[1] > 1:
        return choose_local_device(device)
    here = next(iter(named_tensors(model).values())).device
    if device == "auto":
        chosen = here if here.type != "cpu" else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        try:
            chosen = torch.device(device)
        except RuntimeError as error:
            raise InputError(
                f"train_classifier: device is {device!r}; it must be like 'auto', 'cpu', 'cuda'."
            ) from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"train_classifier: device is {device!r}, but there is no GPU that torch can use.")
    if chosen.type == "cpu" and recipe.precision.startswith("16"):
        raise InputError(f"train_classifier: precision {recipe.precision!r} needs a GPU; a CPU knows 'bf16-mixed'.")
    return chosen


# ------------------------------------------------------------------------------------------------------------- Fabric


def _start_fabric(recipe: Recipe, device: torch.device) -> Fabric:
    """Fabric on one device, or on those of all processes.

    The environment is named, since Fabric would otherwise guess it, and run n separate trainings under torchrun.
    """
    from lightning_fabric import Fabric  # takes seconds, which only those who train should wait
    from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
    from lightning_fabric.strategies import DDPStrategy

    if world()[1] == 1:
        devices = [device.index or 0] if device.type == "cuda" else 1
        environment: Any = LightningEnvironment()
        return Fabric(accelerator=device.type, devices=devices, precision=recipe.precision, plugins=[environment])
    _, local = local_world()
    machines = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    if local * machines != world()[1]:
        raise InputError(f"torchrun must start as many processes on each of the {machines} machines; here are {local}.")
    fabric = Fabric(
        accelerator=device.type,
        devices=local,
        num_nodes=machines,
        strategy=DDPStrategy(),
        precision=recipe.precision,
        plugins=[TorchElasticEnvironment()],
    )
    fabric.launch()
    return fabric


@contextlib.contextmanager
def _quiet_fabric() -> Generator[None]:
    """No notes about seeds and launches."""
    import lightning_fabric  # its import sets the level

    logger = logging.getLogger(lightning_fabric.__name__)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _as_before(job: _Job) -> Generator[None]:
    """Afterwards modes, devices, types and random states are as before, and no gradients are left."""
    generators = [*generators_of(job.loader), *generators_of(job.validation)]
    states = [generator.get_state() for generator in generators]
    modes = [(module, module.training) for module in job.model.modules()]
    models = [model for model in (job.model, job.teacher) if model is not None]
    places = [{name: (t.device, t.dtype) for name, t in named_tensors(model).items()} for model in models]
    teaching = evaluation_mode(job.teacher) if job.teacher is not None else contextlib.nullcontext()
    try:
        with preserve_random_state(), torch.inference_mode(False), torch.enable_grad(), teaching:
            yield
    finally:
        for parameter in job.model.parameters():
            parameter.grad = None
        for module, training in modes:
            module.training = training
        for model, kinds in zip(models, places, strict=True):
            _move_back(model, kinds)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _move_back(model: nn.Module, kinds: Mapping[str, tuple[torch.device, torch.dtype]]) -> None:
    """Gives parameters and buffers, which stay the same parameters, the devices and types that they had."""
    for name, tensor in named_tensors(model).items():
        device, dtype = kinds[name]
        if (tensor.device, tensor.dtype) != (device, dtype):
            if isinstance(tensor, nn.Parameter):
                tensor.data = tensor.data.to(device, dtype)
            else:
                owner, _, leaf = name.rpartition(".")
                model.get_submodule(owner)._buffers[leaf] = tensor.to(device, dtype)
