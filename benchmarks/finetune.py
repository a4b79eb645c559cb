"""A fine-tuned comparison of criteria: the same cut in MACs, the same short training, several seeds, mean and spread.

    CLEANAI_DATA=/path/to/data python -m benchmarks.finetune --output docs/results/finetune.csv
    python -m benchmarks.finetune --epochs 1 --train-images 5000 --seeds 0 1 --test-images 1000 --output x.csv
    python -m benchmarks.finetune --table

ResNet-20 on CIFAR-10 is cut once by each criterion, its channels ranked together, and trained from there. Seeds change
the order and the augmentation of the training images only. Rows are written as they are measured and skipped when they
are there already. The table says which differences are noise: a mean that is behind the best one by less than twice the
standard error of their difference.
"""

from __future__ import annotations

import argparse
import copy
import csv
import itertools
import math
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import TensorDataset

from benchmarks.accuracy import Benchmark, Job, describe_run, measure_accuracy, save_facts
from benchmarks.subjects import SUBJECTS, Amounts, Subject
from cleanai.data import augment_cifar10, load_cifar10, make_loader
from cleanai.errors import InputError
from cleanai.training import Recipe, train_classifier

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "finetune.csv"
MODEL = "resnet20"
WAYS = (
    *("reconstruction:least_squares", "l2:least_squares"),
    *("reconstruction", "l1", "l2", "taylor", "wanda", "coverage_combined", "fpgm", "random"),
)
SEEDS = (0, 1, 2)
NOISE = 2.0  # standard errors


@dataclass(frozen=True)
class Trial:
    """One training of one cut network; accuracies in percent on the test images."""

    criterion: str
    recovery: str
    seed: int
    keep: float
    epochs: int
    lr: float
    train_images: int
    test_images: int
    accuracy_before: float
    accuracy_cut: float
    accuracy: float
    macs_kept: float
    parameters_kept: float
    seconds: float

    @property
    def key(self) -> tuple[str, str, int]:
        """What was trained, and with which seed."""
        return self.criterion, self.recovery, self.seed


@dataclass(frozen=True)
class Summary:
    """All trials of one way to cut: means in percent, the standard deviation over seeds (None for one seed).

    ``behind`` is how far the mean is below the best one; ``verdict`` is "top", "noise" or "real".
    """

    criterion: str
    recovery: str
    accuracy_cut: float
    mean: float
    deviation: float | None
    behind: float
    verdict: str


@dataclass(frozen=True)
class Settings:
    """How much is cut and trained, with which seeds, and what has been measured already."""

    keep: float = 0.5
    epochs: int = 2
    lr: float = 0.01
    seeds: Sequence[int] = SEEDS
    done: frozenset[tuple[str, str, int]] = frozenset()

    def missing(self, criterion: str, recovery: str) -> list[int]:
        """The seeds that have not been measured yet."""
        return [seed for seed in self.seeds if (criterion, recovery, seed) not in self.done]


# ----------------------------------------------------------------------------------------------------- the measuring


def measure_trials(
    benchmark: Benchmark, subject: Subject, data: TensorDataset, ways: Sequence[tuple[str, str]], settings: Settings
) -> Iterator[Trial]:
    """Cuts once for each (criterion, recovery), then trains a copy for each seed that is asked for."""
    for criterion, recovery in ways:
        seeds = settings.missing(criterion, recovery)
        if not seeds:
            continue
        row, network = next(benchmark.cut([Job(subject.name, criterion, settings.keep, recovery)]))
        if network is None or row.accuracy is None or row.macs_kept is None or row.parameters_kept is None:
            raise InputError(f"{criterion} with {recovery}: {row.note}")
        for seed in seeds:
            candidate = copy.deepcopy(network)
            loader = make_loader(data, batch_size=128, shuffle_seed=seed, augment=augment_cifar10)
            start = time.perf_counter()
            train_classifier(candidate, loader, Recipe(epochs=settings.epochs, lr=settings.lr, seed=seed), device="cpu")
            seconds = time.perf_counter() - start
            yield Trial(
                criterion=criterion,
                recovery=recovery,
                seed=seed,
                keep=settings.keep,
                epochs=settings.epochs,
                lr=settings.lr,
                train_images=len(data),
                test_images=subject.test_images,
                accuracy_before=row.accuracy_before,
                accuracy_cut=row.accuracy,
                accuracy=round(measure_accuracy(candidate, subject), 3),
                macs_kept=row.macs_kept,
                parameters_kept=row.parameters_kept,
                seconds=round(seconds, 1),
            )


def parse_way(text: str) -> tuple[str, str]:
    """A criterion and a recovery, written "criterion" or "criterion:recovery".

    Example:
        >>> parse_way("l2"), parse_way("l2:least_squares")
        (('l2', 'none'), ('l2', 'least_squares'))
    """
    criterion, _, recovery = text.partition(":")
    return criterion, recovery or "none"


# --------------------------------------------------------------------------------------------------------- the table


def read_trials(path: Path) -> list[Trial]:
    """The rows of a CSV file; none if there is no file.

    Raises:
        InputError: if the file has other columns.
    """
    if not path.is_file():
        return []
    kinds = {field.name: {"str": str, "int": int, "float": float}[str(field.type)] for field in fields(Trial)}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != list(kinds):
            raise InputError(f"{path} has other columns than this benchmark writes; give another --output.")
        records: list[dict[str, Any]] = [
            {name: kind(record[name]) for name, kind in kinds.items()} for record in reader
        ]
    return [Trial(**record) for record in records]


def save_trials(path: Path, trials: Iterable[Trial]) -> None:
    """All rows, written beside the file and renamed."""
    partial = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Trial)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(trial) for trial in trials)
    partial.replace(path)


def describe_trials(trials: Sequence[Trial]) -> dict[str, Any]:
    """What all trials have in common, and the number of seeds.

    Raises:
        InputError: if there are none, or if they were measured with different settings.
    """
    common = {(t.keep, t.epochs, t.lr, t.train_images, t.test_images) for t in trials}
    if len(common) != 1:
        raise InputError(f"one table needs trials of one setting, got {sorted(common)}")
    keep, epochs, lr, train_images, test_images = common.pop()
    settings = {"keep": keep, "epochs": epochs, "lr": lr, "train_images": train_images, "test_images": test_images}
    return {**settings, "seeds": len({trial.seed for trial in trials})}


def check_settings(
    trials: Iterable[Trial], settings: Settings, train_images: int, test_images: int, path: Path
) -> None:
    """Trials of other settings must not stand in one table."""
    own = settings.keep, settings.epochs, settings.lr, train_images, test_images
    for trial in trials:
        found = trial.keep, trial.epochs, trial.lr, trial.train_images, trial.test_images
        if found != own:
            raise InputError(
                f"{path} has trials with (keep, epochs, lr, training images, test images) = {found}, this run has "
                f"{own}; give the same settings or another --output."
            )


def summarise(trials: Sequence[Trial]) -> list[Summary]:
    """Mean and spread of each way to cut, the best first, and whether its distance to the best is more than noise.

    Two means differ if they are at least two standard errors of their difference apart, √(s₁²/n₁ + s₂²/n₂). Without a
    spread, with one seed, everything is noise.

    Example:
        >>> base = dict(keep=0.5, epochs=1, lr=0.1, train_images=9, test_images=9, accuracy_before=90.0)
        >>> base |= dict(accuracy_cut=50.0, macs_kept=0.5, parameters_kept=0.5, seconds=1.0)
        >>> scores = {"a": (80, 82), "b": (79, 81), "c": (70, 70.5)}
        >>> trials = [Trial(n, "none", s, accuracy=v, **base) for n, vs in scores.items() for s, v in enumerate(vs)]
        >>> [(each.criterion, each.mean, each.verdict) for each in summarise(trials)]
        [('a', 81, 'top'), ('b', 80, 'noise'), ('c', 70.25, 'real')]
    """
    found = []
    ordered = sorted(trials, key=lambda trial: (trial.criterion, trial.recovery))
    for (criterion, recovery), own in itertools.groupby(ordered, key=lambda trial: (trial.criterion, trial.recovery)):
        group = list(own)
        accuracies = [trial.accuracy for trial in group]
        found.append((statistics.mean(accuracies), criterion, recovery, accuracies, group[0].accuracy_cut))
    found.sort(key=lambda each: -each[0])
    best, best_accuracies = found[0][0], found[0][3]
    summaries = []
    for place, (mean, criterion, recovery, accuracies, cut) in enumerate(found):
        deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else None
        verdict = "top" if place == 0 else "noise" if is_noise(best_accuracies, accuracies) else "real"
        summaries.append(Summary(criterion, recovery, cut, mean, deviation, best - mean, verdict))
    return summaries


def is_noise(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether two means are less than two standard errors of their difference apart.

    Example:
        >>> is_noise([80, 82], [79, 81]), is_noise([80, 82], [70, 70.5])
        (True, False)
    """
    if len(first) < 2 or len(second) < 2:
        return True
    error = math.sqrt(sum(statistics.variance(values) / len(values) for values in (first, second)))
    return abs(statistics.mean(first) - statistics.mean(second)) < NOISE * error


def markdown_table(lines: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """A Markdown table from its lines, the first being the titles; all columns but some are aligned to the right."""
    styles = ["---" if column in left else "---:" for column in range(len(lines[0]))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (lines[0], styles, *lines[1:]))


def make_table(trials: Sequence[Trial]) -> str:
    """The comparison as a Markdown table."""
    lines = [["criterion", "repair", "MACs kept", "after the cut", "fine-tuned, mean", "deviation", "behind", ""]]
    kept = {trial.key[:2]: trial.macs_kept for trial in trials}
    names = {"top": "best", "noise": "noise", "real": "difference"}
    for each in summarise(trials):
        numbers = (each.accuracy_cut, each.mean, each.deviation, each.behind)
        cells = ["—" if value is None else f"{value:.2f}" for value in numbers]
        share = f"{kept[each.criterion, each.recovery]:.3f}"
        lines.append([each.criterion, each.recovery, share, *cells, names[each.verdict]])
    return markdown_table(lines, left=(0, 1, 7))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what the file does not have yet and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), metavar="CRITERION[:RECOVERY]")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--keep", type=float, default=0.5, help="the share of the MACs that stays")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--train-images", type=int, help="only so many of the 50,000")
    parser.add_argument("--test-images", type=int, help="only so many of the 10,000")
    parser.add_argument("--calibration-images", type=int, help="default: 1,024, and their mirror images")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--output", type=Path, default=RESULTS, help="a CSV file; what it has already is skipped")
    parser.add_argument("--table", action="store_true", help="only print the table of the output")
    args = parser.parse_args(arguments)
    trials = {trial.key: trial for trial in read_trials(args.output)}
    if not args.table:
        if args.threads:
            torch.set_num_threads(args.threads)
        amounts = Amounts(args.calibration_images, args.test_images)
        benchmark = Benchmark(lambda name: SUBJECTS[name](name, amounts))
        settings = Settings(args.keep, args.epochs, args.lr, args.seeds, frozenset(trials))
        data = load_cifar10("train", limit=args.train_images, seed=1)
        subject = benchmark.subject(MODEL)
        check_settings(trials.values(), settings, len(data), subject.test_images, args.output)
        ways = [parse_way(text) for text in args.ways]
        for trial in measure_trials(benchmark, subject, data, ways, settings):
            trials[trial.key] = trial
            save_trials(args.output, trials.values())
            save_facts(args.output.with_suffix(".json"), {**describe_run(), "subject": MODEL})
            print(
                f"{trial.criterion:18} {trial.recovery:13} seed {trial.seed}: {trial.accuracy_cut:6.2f} -> "
                f"{trial.accuracy:6.2f} %  {trial.seconds:.0f} s",
                flush=True,
            )
    if trials:
        print(make_table(list(trials.values())))


if __name__ == "__main__":
    main()
