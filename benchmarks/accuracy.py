"""Accuracy right after the cut: every criterion, every repair, at several shares of the MACs, on trained networks.

    CLEANAI_DATA=/path/to/data python -m benchmarks.accuracy --output docs/results/accuracy.csv
    python -m benchmarks.accuracy --models resnet20 --keep 0.5 --test-images 1000 --output x.csv
    python -m benchmarks.accuracy --page

Nothing is trained here. The channels of all groups are ranked together, the target is a share of the MACs; scores and
repairs see calibration images only. Rows are written as they are measured, the most important ones first; rows that a
file already has are skipped, so that a run can be interrupted and continued. ``--page`` draws the figures and writes
`docs/accuracy.md` and `docs/accuracy.tr.md` from the file.
"""

from __future__ import annotations

import argparse
import copy
import csv
import itertools
import json
import os
import platform
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from torch import nn

import cleanai
from benchmarks.subjects import SUBJECTS, Amounts, Subject
from cleanai.calibration import ActivationStatistics
from cleanai.errors import CleanAIError, InputError
from cleanai.evaluate import count_macs, count_parameters, evaluate_model
from cleanai.gradients import GradientStatistics
from cleanai.pruner import StructuredPruner
from cleanai.recover import METHODS, recover_model

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "accuracy.csv"
BEST = ("reconstruction", "least_squares")
QUICK_RECOVERIES = ("none", "batchnorm")
FIRST_MODEL = "resnet20"  # whose slow repairs come before those of the others
CRITERIA = (
    *("reconstruction", "l1", "l2", "bn_scale", "fpgm", "lamp", "taylor", "hessian"),
    *("activation", "wanda", "weight_activation", "coverage", "coverage_combined", "random"),
)
KEEP = (0.8, 0.67, 0.5, 0.33)


class Job(NamedTuple):
    """One row to measure: what is cut, by which criterion, to which share of the MACs, and repaired how."""

    model: str
    criterion: str
    keep: float
    recovery: str


@dataclass(frozen=True)
class Row:
    """One measured row; accuracies in percent, shares from 0 to 1, None where something failed (see note).

    ``seconds_scores`` is the time for calibration, shared by all ratios; ``seconds_prune`` for choosing, slicing and
    the proof; ``seconds_repair`` for the recovery.
    """

    model: str
    criterion: str
    keep: float
    recovery: str
    accuracy_before: float
    calibration_images: int
    mirror: bool
    test_images: int
    accuracy: float | None = None
    macs_kept: float | None = None
    parameters_kept: float | None = None
    seconds_scores: float = 0.0
    seconds_prune: float = 0.0
    seconds_repair: float = 0.0
    note: str = ""

    @property
    def job(self) -> Job:
        """What was to be measured."""
        return Job(self.model, self.criterion, self.keep, self.recovery)


# --------------------------------------------------------------------------------------------------------- the order


def list_jobs(
    models: Sequence[str], criteria: Sequence[str], keep: Sequence[float], recoveries: Sequence[str]
) -> list[Job]:
    """All rows, the most important first: the best repair, then what costs little, then the slow repairs.

    Example:
        >>> [tuple(job) for job in list_jobs(["vit"], ["l2", "reconstruction"], [0.5], ["none", "least_squares"])][0]
        ('vit', 'reconstruction', 0.5, 'least_squares')
    """
    jobs = [Job(*each) for each in itertools.product(models, criteria, keep, recoveries)]
    return sorted(jobs, key=find_turn)  # stable: within a turn, the order of the arguments


def find_turn(job: Job) -> int:
    """In which round a row is measured."""
    if (job.criterion, job.recovery) == BEST:
        return 0
    if job.recovery in QUICK_RECOVERIES:
        return 1
    return 2 if job.model == FIRST_MODEL else 3


# ----------------------------------------------------------------------------------------------------- the measuring


class Benchmark:
    """Measures jobs; keeps one subject at a time, and the statistics of every criterion for its other ratios."""

    def __init__(self, load: Callable[[str], Subject]) -> None:
        self._load = load
        self._subject: Subject | None = None
        self._before: dict[str, float] = {}
        self._collected: dict[
            tuple[str, str], tuple[ActivationStatistics | None, GradientStatistics | None, float]
        ] = {}

    def subject(self, name: str) -> Subject:
        """The network with its data."""
        if self._subject is None or self._subject.name != name:
            self._subject = None  # gone before the next is loaded
            self._subject = self._load(name)
        return self._subject

    def accuracy_before(self, name: str) -> float:
        """Of the untouched network on the test images, in percent."""
        if name not in self._before:
            self._before[name] = measure_accuracy(self.subject(name).model, self.subject(name))
        return self._before[name]

    def measure(self, jobs: Iterable[Job]) -> Iterator[Row]:
        """The rows of some jobs; neighbours that differ in the repair only share one cut."""
        return (row for row, _ in self.cut(jobs))

    def cut(self, jobs: Iterable[Job]) -> Iterator[tuple[Row, nn.Module | None]]:
        """The rows of some jobs, each with the network that was measured; None where it failed."""
        for (name, criterion, keep), group in itertools.groupby(jobs, key=lambda job: job[:3]):
            subject, before = self.subject(name), self.accuracy_before(name)
            row = Row(
                *(name, criterion, keep, ""),
                accuracy_before=round(before, 3),
                calibration_images=subject.calibration_images,
                mirror=subject.mirror,
                test_images=subject.test_images,
            )
            recoveries = [job.recovery for job in group]
            try:
                pruner, pruned, row = self._prune(subject, row)
            except Exception as error:  # one failure ends no run of hours: the table says so
                yield from ((replace(row, recovery=each, note=_describe(error)), None) for each in recoveries)
                continue
            for recovery in recoveries:
                try:
                    yield _repair(subject, pruner, pruned, replace(row, recovery=recovery))
                except Exception as error:
                    yield replace(row, recovery=recovery, note=_describe(error)), None

    def _prune(self, subject: Subject, row: Row) -> tuple[StructuredPruner, nn.Module, Row]:
        """The pruner, the network it has cut and proven, and what was measured so far."""
        pruner = StructuredPruner(
            subject.model,
            subject.example,
            importance=row.criterion,
            pruning_ratio=1 - row.keep,
            target="macs",
            global_pruning=True,
        )
        seconds = self._give_statistics(pruner, subject, row.criterion)
        start = time.perf_counter()
        pruned = pruner.prune()
        return (
            pruner,
            pruned,
            replace(
                row,
                macs_kept=round(count_macs(pruned, subject.example) / count_macs(subject.model, subject.example), 5),
                parameters_kept=round(count_parameters(pruned) / count_parameters(subject.model), 5),
                seconds_scores=seconds,
                seconds_prune=round(time.perf_counter() - start, 2),
                note="; ".join(pruner.warnings),
            ),
        )

    def _give_statistics(self, pruner: StructuredPruner, subject: Subject, criterion: str) -> float:
        """Collected for the first ratio, handed on to the others; gives the seconds that the collection took."""
        key = subject.name, criterion
        if key not in self._collected:
            start = time.perf_counter()
            if getattr(pruner.importance, "needs_activations", False):
                pruner.collect_activations(subject.calibration, progress=False)
            if getattr(pruner.importance, "needs_gradients", False):
                pruner.collect_gradients(subject.calibration, progress=False)
            seconds = round(time.perf_counter() - start, 2)
            self._collected[key] = pruner.statistics, pruner.gradients, seconds
        pruner.statistics, pruner.gradients, seconds = self._collected[key]
        return seconds


def measure_accuracy(model: nn.Module, subject: Subject) -> float:
    """Top-1 on the test images, in percent."""
    accuracy = evaluate_model(model, subject.test).accuracy
    if accuracy is None:
        raise InputError(f"{subject.name}: the test images have no class labels")
    return accuracy


def _repair(subject: Subject, pruner: StructuredPruner, pruned: nn.Module, row: Row) -> tuple[Row, nn.Module]:
    """Repairs a copy of the cut network in the row's way and measures it."""
    if pruner.plan is None:
        raise InputError("nothing was planned")
    candidate = copy.deepcopy(pruned)
    start = time.perf_counter()
    recover_model(
        subject.model,
        candidate,
        pruner.plan,
        pruner.analysis.coupling,
        subject.calibration,
        subject.example,
        method=row.recovery,
        progress=False,
    )
    seconds = round(time.perf_counter() - start, 2)
    return replace(row, seconds_repair=seconds, accuracy=round(measure_accuracy(candidate, subject), 3)), candidate


def _describe(error: Exception) -> str:
    if not isinstance(error, CleanAIError):
        traceback.print_exception(error)
    return " ".join(f"failed: {type(error).__name__}: {error}".split())[:300]


# --------------------------------------------------------------------------------------------------------- the table


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV file; none if there is no file.

    Raises:
        InputError: if the file has other columns.
    """
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != [field.name for field in fields(Row)]:
            raise InputError(f"{path} has other columns than this benchmark writes; give another --output.")
        return [_read_row(record) for record in reader]


def _read_row(record: dict[str, str]) -> Row:
    numbers = {name: float(value) if value else None for name, value in record.items() if name in _NUMBERS}
    counts = {name: int(record[name]) for name in ("calibration_images", "test_images")}
    values: dict[str, Any] = {**record, **numbers, **counts, "mirror": record["mirror"] == "True"}
    return Row(**values)


_NUMBERS = {field.name for field in fields(Row) if "float" in str(field.type)}


def save_rows(path: Path, rows: Iterable[Row]) -> None:
    """All rows in the order of networks, criteria, shares and repairs, written beside the file and renamed."""
    partial = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in sorted(rows, key=_place))
    partial.replace(path)


def _place(row: Row) -> tuple[int, int, float, int]:
    places = ((row.model, tuple(SUBJECTS)), (row.criterion, CRITERIA), (row.recovery, METHODS))
    model, criterion, recovery = (order.index(name) if name in order else len(order) for name, order in places)
    return model, criterion, -row.keep, recovery


def find_missing(jobs: Iterable[Job], rows: Iterable[Row], *, retry: bool) -> list[Job]:
    """The jobs that no row answers yet; with ``retry``, a row that failed is no answer."""
    answered = {row.job for row in rows if not (retry and row.accuracy is None)}
    return [job for job in jobs if job not in answered]


def check_settings(rows: Iterable[Row], subject: Subject, path: Path) -> None:
    """Rows of one network that were measured on other amounts of data must not stand in one table."""
    own = subject.calibration_images, subject.mirror, subject.test_images
    for row in rows:
        found = row.calibration_images, row.mirror, row.test_images
        if row.model == subject.name and found != own:
            raise InputError(
                f"{path} has rows of {row.model} with (calibration images, mirrored, test images) = {found}, this run "
                f"has {own}; give the same settings or another --output."
            )


def describe_subject(subject: Subject, before: float) -> dict[str, Any]:
    """What the page says of a network."""
    return {
        "data": subject.data,
        "accuracy": round(before, 3),
        "macs": count_macs(subject.model, subject.example),
        "parameters": count_parameters(subject.model),
        "calibration_images": subject.calibration_images,
        "mirror": subject.mirror,
        "test_images": subject.test_images,
    }


def describe_run() -> dict[str, Any]:
    """On what, when and with which command something is measured."""
    packages = {"torch": torch, "torchvision": torchvision, "cleanai": cleanai}
    return {
        "command": shlex.join(["python", "-m", *_module_and_arguments()]),
        "machine": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "measured": time.strftime("%Y-%m-%d"),
        "versions": {
            "python": platform.python_version(),
            **{name: package.__version__ for name, package in packages.items()},
        },
    }


def _module_and_arguments() -> list[str]:
    """As it was called, paths shortened to names: where a folder lies on this machine is nobody's business."""
    arguments = [Path(part).name if os.path.isabs(part) else part for part in sys.argv[1:]]
    return [f"benchmarks.{Path(sys.argv[0]).stem}", *arguments]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def read_facts(path: Path) -> dict[str, Any]:
    """What `save_facts` wrote; an empty start if there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"subjects": {}}


def save_facts(path: Path, facts: dict[str, Any]) -> None:
    """Writes a JSON file beside the table."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def run(jobs: Sequence[Job], benchmark: Benchmark, path: Path, *, retry: bool = False) -> list[Row]:
    """Measures what the file does not have yet, row by row into the file; gives all its rows."""
    rows = {row.job: row for row in read_rows(path)}
    facts_path = path.with_suffix(".json")
    facts = {**read_facts(facts_path), **describe_run()}
    for name, group in itertools.groupby(find_missing(jobs, rows.values(), retry=retry), key=lambda job: job.model):
        subject = benchmark.subject(name)
        check_settings(rows.values(), subject, path)
        for row in benchmark.measure(group):
            rows[row.job] = row
            save_rows(path, rows.values())
            print(format_row(row), flush=True)
        facts["subjects"][name] = describe_subject(subject, benchmark.accuracy_before(name))
        save_facts(facts_path, facts)
    return list(rows.values())


def format_row(row: Row) -> str:
    """A line for the terminal."""
    start = f"{row.model:12} {row.criterion:18} {row.keep:4.2f} {row.recovery:13}"
    if row.accuracy is None:
        return f"{start} {row.note}"
    seconds = row.seconds_scores + row.seconds_prune + row.seconds_repair
    return (
        f"{start} {row.accuracy_before:6.2f} -> {row.accuracy:6.2f} %  MACs {row.macs_kept:.3f}  "
        f"parameters {row.parameters_kept:.3f}  {seconds:6.1f} s"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures the table, or writes the pages from it; the exit code is 1 if a row failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--criteria", nargs="+", default=list(CRITERIA), help="names, as importance= takes them")
    parser.add_argument("--recoveries", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--keep", nargs="+", type=float, default=list(KEEP), help="shares of the MACs that stay")
    parser.add_argument("--output", type=Path, default=RESULTS, help="a CSV file; what it has already is skipped")
    parser.add_argument("--retry", action="store_true", help="measure rows that failed again")
    parser.add_argument("--calibration-images", type=int, help="default: 1,024 of CIFAR-10, 500 photos")
    parser.add_argument("--test-images", type=int, help="default: 10,000 of CIFAR-10, 500 photos")
    mirror = "calibrate on mirror images too (default: on for CIFAR-10, off for the photos)"
    parser.add_argument("--mirror", action=argparse.BooleanOptionalAction, default=None, help=mirror)
    parser.add_argument("--vit-weights", type=Path, help="default: what benchmarks.train_vit has written")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--page", action="store_true", help="only write figures and pages from the output")
    args = parser.parse_args(arguments)
    if args.page:
        from benchmarks.accuracy_page import write_pages  # which reads what this module has written

        print("\n".join(str(path) for path in write_pages(args.output)))
        return 0
    if args.threads:
        torch.set_num_threads(args.threads)
    amounts = Amounts(args.calibration_images, args.test_images, args.mirror, args.vit_weights)
    benchmark = Benchmark(lambda name: SUBJECTS[name](name, amounts))
    jobs = list_jobs(args.models, args.criteria, args.keep, args.recoveries)
    rows = run(jobs, benchmark, args.output, retry=args.retry)
    return int(any(row.accuracy is None for row in rows))


if __name__ == "__main__":
    sys.exit(main())
