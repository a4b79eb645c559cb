"""How a classifier is trained, as data: the recipe, one record for each epoch, and what came out."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, get_args

from cleanai.errors import InputError

OptimizerName = Literal["sgd", "adam", "adamw"]
SchedulerName = Literal["cosine", "step", "linear", "constant"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"]
"""Lightning Fabric's names, without those that need NVIDIA's transformer engine."""

STEP_FACTOR = 0.1
STEPS_AT = (0.5, 0.75)  # shares of the training after which the rate falls (He et al., 2016, section 4.2)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train a classifier.

    Attributes:
        epochs: passes over the loader.
        lr: the highest learning rate.
        optimizer: "sgd", "adam" or "adamw".
        momentum: of "sgd", Nesterov's; 0 is plain SGD. Adam keeps its own (0.9, 0.999).
        weight_decay: applied to tensors of two dimensions and more, so not to biases and normalisation layers.
        scheduler: what the rate does after the warm-up, step by step: "cosine" falls to 0 along half a cosine,
            "linear" along a line, "step" falls tenfold after half and after three quarters, "constant" stays.
        warmup_epochs: in these the rate rises along a line from nearly 0 to ``lr`` (Goyal et al., 2017).
        label_smoothing: share of each target that is spread over all classes (Szegedy et al., 2016).
        clip_norm: the longest that all gradients together may be (L2 norm); None does not clip.
        accumulate: batches whose gradients make one step, as if they were one batch.
        precision: Lightning Fabric's name; "32-true" is float32, or whatever the model's tensors are.
        distillation_weight: share w of the teacher in the loss (1 - w) · cross-entropy
            + w · T² · KL(softmax(teacher / T) ‖ softmax(student / T)) (Hinton et al., 2015).
        distillation_temperature: T.
        patience: stop after so many epochs without a better validation; None trains all epochs.
        seed: of the order of the batches, augmentation, dropout and all else that is random.

    Raises:
        InputError: a field is out of its range; the message says which.

    Example:
        >>> Recipe(epochs=3, lr=0.05).scheduler
        'cosine'
        >>> Recipe(epochs=3, optimizer="lion")
        Traceback (most recent call last):
        cleanai.errors.InputError: Recipe: optimizer is 'lion'; it must be one of 'sgd', 'adam', 'adamw'.
    """

    epochs: int
    lr: float = 0.1
    optimizer: OptimizerName = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    scheduler: SchedulerName = "cosine"
    warmup_epochs: float = 0.0
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    accumulate: int = 1
    precision: Precision = "32-true"
    distillation_weight: float = 0.0
    distillation_temperature: float = 4.0
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_choice("optimizer", OptimizerName)
        self._check_choice("scheduler", SchedulerName)
        self._check_choice("precision", Precision)
        for name, least in (("epochs", 1), ("accumulate", 1), ("patience", 1), ("seed", 0)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
            self._check(name, whole or (name == "patience" and value is None), f"a whole number of at least {least}")
        self._check_number("lr", "above 0", lambda value: value > 0)
        self._check_number("momentum", "at least 0 and below 1", lambda value: 0 <= value < 1)
        self._check_number("weight_decay", "at least 0", lambda value: value >= 0)
        self._check_number("warmup_epochs", "at least 0 and below epochs", lambda value: 0 <= value < self.epochs)
        self._check_number("label_smoothing", "at least 0 and below 1", lambda value: 0 <= value < 1)
        self._check_number("distillation_weight", "from 0 to 1", lambda value: 0 <= value <= 1)
        self._check_number("distillation_temperature", "above 0", lambda value: value > 0)
        if self.clip_norm is not None:
            self._check_number("clip_norm", "above 0, or None", lambda value: value > 0)

    def learning_rate(self, done: float, step: float = 0.0) -> float:
        """The rate of a step before which this share of the training is done; ``step`` is the share of one step.

        Example:
            >>> recipe = Recipe(epochs=10, lr=1.0, warmup_epochs=1)
            >>> [round(recipe.learning_rate(done, step=0.05), 3) for done in (0.0, 0.05, 0.1, 0.55, 0.95)]
            [0.5, 1.0, 1.0, 0.5, 0.008]
        """
        warm = self.warmup_epochs / self.epochs
        if done < warm:
            return self.lr * min(1.0, (done + step) / warm)
        share = (done - warm) / (1 - warm)
        if self.scheduler == "cosine":
            return self.lr * (1 + math.cos(math.pi * share)) / 2
        if self.scheduler == "linear":
            return self.lr * (1 - share)
        if self.scheduler == "step":
            return self.lr * STEP_FACTOR ** sum(share >= place for place in STEPS_AT)
        return self.lr

    def _check_choice(self, name: str, choices: Any) -> None:
        known = get_args(choices)
        self._check(name, getattr(self, name) in known, f"one of {', '.join(map(repr, known))}")

    def _check_number(self, name: str, wanted: str, fits: Any) -> None:
        value = getattr(self, name)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        self._check(name, number and fits(value), f"a number {wanted}")

    def _check(self, name: str, fits: bool, wanted: str) -> None:
        if not fits:
            raise InputError(f"Recipe: {name} is {getattr(self, name)!r}; it must be {wanted}.")


@dataclasses.dataclass(frozen=True)
class EpochRecord:
    """One epoch of a training.

    Attributes:
        epoch: its number from 1.
        train_loss: mean of what was minimised, over the targets of the training batches, while the weights changed.
        train_accuracy: top-1 in percent on the same batches.
        lr: the learning rate of the last step.
        val_loss: mean loss on the validation batches, without label smoothing and teacher; None without validation.
        val_accuracy: top-1 in percent on them; None without validation.
        seconds: how long training and validation took.

    Example:
        >>> record = EpochRecord(epoch=1, train_loss=0.9, train_accuracy=71.5, lr=0.1, val_loss=0.8, val_accuracy=75.0)
        >>> record.val_accuracy - record.train_accuracy
        3.5
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    lr: float
    val_loss: float | None = None
    val_accuracy: float | None = None
    seconds: float = 0.0

    @property
    def rank(self) -> tuple[float, float]:
        """What the best epoch has most of: validation accuracy, and at equal accuracy the lower loss.

        Example:
            >>> first, second = EpochRecord(1, 1.0, 50.0, 0.1, 0.7, 60.0), EpochRecord(2, 0.9, 55.0, 0.1, 0.6, 60.0)
            >>> second.rank > first.rank
            True
        """
        loss = math.inf if self.val_loss is None or math.isnan(self.val_loss) else self.val_loss
        return (-1.0 if self.val_accuracy is None else self.val_accuracy, -loss)


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What a training gave beside the weights.

    Attributes:
        history: one record for each epoch.
        best_epoch: the epoch that did best on the validation batches (accuracy; at equal accuracy the lower loss; at
            equal loss the first); None without validation.
        stopped: why it ended before its last step: "patience" or "time"; None if it did not.

    Example:
        >>> result = TrainingResult([EpochRecord(1, 0.9, 71.5, 0.1, 0.8, 75.0)], best_epoch=1)
        >>> result.history[result.best_epoch - 1].val_accuracy, result.stopped
        (75.0, None)
    """

    history: list[EpochRecord]
    best_epoch: int | None = None
    stopped: Literal["patience", "time"] | None = None


def find_best(history: list[EpochRecord]) -> int | None:
    """The epoch that did best on the validation batches; None without validation.

    Example:
        >>> find_best([EpochRecord(1, 1.0, 50.0, 0.1, 0.7, 60.0), EpochRecord(2, 0.9, 55.0, 0.1, 0.6, 60.0)])
        2
    """
    validated = [record for record in history if record.val_loss is not None]
    return max(validated, key=lambda record: record.rank).epoch if validated else None
