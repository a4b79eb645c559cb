"""What an experiment found, as data: the prepared model, and each method's pruning, fine-tuning and measurements.

One file per stage and method is written as soon as it is known; the report puts them together. Shares are fractions,
accuracies percent, sizes MB = 10^6 bytes, times named by their unit.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cleanai.errors import InputError
from cleanai.evaluate import ModelMetrics
from cleanai.experiments.config import ExperimentConfig
from cleanai.report import Report
from cleanai.serialize import format_json, read_json, read_record, to_json, write_text

FORMAT = "cleanai-results"
STAGE_FORMAT = "cleanai-stage"
STORED = Path("data") / "results" / "reports"
"""Where this project keeps the results that it shows."""
ORIGINAL, PRUNED, FINETUNED = "original (fine-tuned)", "pruned", "pruned and fine-tuned"
STAGE_NAMES = (ORIGINAL, PRUNED, FINETUNED)
"""The columns of the comparison table, in order; a stage that was not run has none."""


@dataclass(frozen=True)
class DataFacts:
    """What was trained, calibrated and measured on: the number of images in each part, which share none.

    Attributes:
        name: of the data.
        classes: how many the model tells apart.
        train: images that were trained on.
        calibration: images that scores and repairs looked at.
        validation: images that chose the best epoch.
        test: images that were measured on.
        note: a warning, such as that the calibration images are test images.

    Example:
        From the results that the repository holds:

        >>> load_results()["TS1_ResNet20_CIFAR10"].data
        DataFacts(name='CIFAR10', classes=10, train=40000, calibration=3200, validation=5000, test=10000, note='')
    """

    name: str
    classes: int
    train: int
    calibration: int
    validation: int
    test: int
    note: str = ""


@dataclass(frozen=True)
class Environment:
    """Where and how something ran.

    Attributes:
        versions: {package: version}.
        machine: in words.
        device: what torch computed on, such as "cpu".
        threads: of torch.
        processes: how many there were.
        created: date and time, ISO 8601.
        command: what runs it again.

    Example:
        From the results that the repository holds:

        >>> load_results()["TS1_ResNet20_CIFAR10"].environment.command
        'cleanai run TS1 --profile quick'
    """

    versions: dict[str, str]
    machine: str
    device: str
    threads: int
    processes: int
    created: str
    command: str


@dataclass(frozen=True)
class ModelState:
    """A model at one moment of the preparation.

    Attributes:
        metrics: its measurements.
        trainable: how many of its parameters are trained.

    Example:
        >>> from cleanai.evaluate import ModelMetrics
        >>> metrics = ModelMetrics(parameters=50, size_mb=0.0002, macs=40, accuracy=91.0)
        >>> ModelState(metrics, trainable=50).metrics.accuracy
        91.0
    """

    metrics: ModelMetrics
    trainable: int


@dataclass(frozen=True)
class Preparation:
    """The original model before and after it was fitted to the data.

    Attributes:
        weights: where its first weights came from.
        before: the model with these weights.
        after: the model that is pruned.
        history: one record per epoch, none without training.
        stopped_early: whether patience or time ended the training.
        best_epoch: the epoch whose weights were best on the validation images; None without training.
        seconds: how long it took.
        files: {checkpoint: path relative to the output folder}.

    Example:
        From the results that the repository holds:

        >>> preparation = load_results()["TS1_ResNet20_CIFAR10"].preparation
        >>> preparation.weights, len(preparation.history)
        ('trained weights (resnet20.safetensors)', 0)
    """

    weights: str
    before: ModelState
    after: ModelState
    history: list[dict[str, Any]]
    stopped_early: bool
    best_epoch: int | None
    seconds: float
    files: dict[str, str]


@dataclass(frozen=True)
class PruneResult:
    """What pruning with one method gave.

    Attributes:
        report: of the cut.
        seconds: how long it took.
        files: {checkpoint: path relative to the output folder}.

    Example:
        From the results that the repository holds:

        >>> method = load_results()["TS1_ResNet20_CIFAR10"].methods["wanda"]
        >>> PruneResult(method.report, method.seconds["prune"], method.files).report.proof.passed
        True
    """

    report: Report
    seconds: float
    files: dict[str, str]


@dataclass(frozen=True)
class TuneResult:
    """What fine-tuning the pruned model gave.

    Attributes:
        metrics: of the fine-tuned model.
        history: one record per epoch.
        stopped_early: whether patience or time ended the training.
        best_epoch: the epoch whose weights were best on the validation images; None without validation.
        seconds: how long it took.
        files: {checkpoint: path relative to the output folder}.

    Example:
        >>> from cleanai.evaluate import ModelMetrics
        >>> metrics = ModelMetrics(parameters=50, size_mb=0.0002, macs=40, accuracy=91.0)
        >>> TuneResult(metrics, [{"epoch": 1, "val_accuracy": 90.5}], False, 1, 12.5, {}).metrics.accuracy
        91.0
    """

    metrics: ModelMetrics
    history: list[dict[str, Any]]
    stopped_early: bool
    best_epoch: int | None
    seconds: float
    files: dict[str, str]


@dataclass(frozen=True)
class MethodResult:
    """One method's result.

    Attributes:
        method: its name.
        code: its short name in files, such as "NC".
        report: the cut, its proof, the history of the fine-tuning, and the metrics by stage: "original (fine-tuned)",
            "pruned", "pruned and fine-tuned".
        stopped_early: whether patience or time ended the fine-tuning.
        best_epoch: the epoch whose weights were best on the validation images; None without fine-tuning.
        seconds: {"prune": …, "finetune": …}.
        files: {checkpoint: path relative to the output folder}.

    Example:
        From the results that the repository holds:

        >>> method = load_results()["TS1_ResNet20_CIFAR10"].methods["wanda"]
        >>> method.code, {stage: metrics.accuracy for stage, metrics in method.report.metrics.items()}
        ('W', {'original (fine-tuned)': 91.73, 'pruned': 25.5, 'pruned and fine-tuned': 89.32})
    """

    method: str
    code: str
    report: Report
    stopped_early: bool
    best_epoch: int | None
    seconds: dict[str, float]
    files: dict[str, str]


@dataclass(frozen=True, repr=False)
class ExperimentResults:
    """A whole experiment. It prints itself in a terminal and shows itself in a notebook.

    Attributes:
        name: scenario, model and data, as in file names.
        config: its settings.
        data: what was trained and measured on.
        environment: where and how it ran.
        preparation: the original model.
        methods: each method's result, in the order asked for.
        warnings: what a reader must know about the numbers.

    Example:
        From the results that the repository holds:

        >>> results = load_results()["TS1_ResNet20_CIFAR10"]
        >>> list(results.methods), results.config.pruning_ratio
        (['coverage', 'wanda'], 0.2)
    """

    name: str
    config: ExperimentConfig
    data: DataFacts
    environment: Environment
    preparation: Preparation
    methods: dict[str, MethodResult]
    warnings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        from cleanai.experiments.showing import show_text

        return show_text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from cleanai.experiments.showing import show_html

        return show_html(self)

    def translate(self, language: str) -> ExperimentResults:
        """The same results, with the methods' reports, in another language, "en" or "tr".

        Raises:
            InputError: an unknown language.
        """
        methods = {
            name: dataclasses.replace(result, report=dataclasses.replace(result.report, language=language))
            for name, result in self.methods.items()
        }
        return dataclasses.replace(self, config=self.config.replace(language=language), methods=methods)

    def to_dict(self) -> dict[str, Any]:
        """The results as plain JSON values; `from_dict` reads them."""
        return {"format": FORMAT, **to_plain(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ExperimentResults:
        """The results that `to_dict` wrote.

        Raises:
            InputError: the data is something else, or damaged.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise InputError(f'These are no results of an experiment: their "format" is not "{FORMAT}".')
        try:
            return from_plain(cls, {key: value for key, value in data.items() if key != "format"})
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise InputError(f"These results of an experiment are damaged: {error}") from error

    def save(self, path: str | Path) -> Path:
        """Writes the results as JSON, whole or not at all; gives the path."""
        write_text(Path(path), format_json(self.to_dict()))
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> ExperimentResults:
        """Reads what `save` wrote; executes no code.

        Raises:
            InputError: the file is missing or something else.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} holds no results of an experiment: {error}") from error
        return cls.from_dict(data)


# ----------------------------------------------------------------------------------------------------- reading a folder


def load_results(folder: str | Path | None = None, language: str | None = None) -> dict[str, ExperimentResults]:
    """All results of experiments that lie in a folder, by name ("TS1_ResNet20_CIFAR10"); other JSON files are left out.

    Args:
        folder: a ``reports`` folder; left out, the nearest ``data/results/reports`` at or above the working folder.
        language: "en" or "tr", what they show themselves in; left out, as they were made.

    Raises:
        InputError: there is no such folder, no results in it, or a damaged file.

    Example:
        From the results that the repository holds:

        >>> load_results()["TS1_ResNet20_CIFAR10"].methods["wanda"].report.proof.passed
        True
    """
    place = find_stored() if folder is None else Path(folder)
    records = [data for path in sorted(place.glob("*.json")) if (data := _read_record(path, FORMAT)) is not None]
    if not records:
        raise InputError(f"{place} holds no results of experiments: run one first (cleanai run TS1 --profile smoke).")
    found = [ExperimentResults.from_dict(data) for data in records]
    return {each.name: each if language is None else each.translate(language) for each in found}


def find_stored() -> Path:
    """The nearest `STORED` at or above the working folder; raises `InputError` where there is none."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / STORED).is_dir():
            return folder / STORED
    raise InputError(f"There is no {STORED.as_posix()} at or above {here}: name the folder that holds the results.")


def load_stages(output: str | Path) -> dict[str, Preparation | PruneResult | TuneResult]:
    """What the finished stages below an experiment's output folder gave, by their places in ``checkpoints/``.

    Such a place is "TS1/prepare" or "TS1_WANDA_ResNet18_CIFAR10/prune".

    Args:
        output: the folder that was given to `run_experiment`.

    Returns:
        {place: a `Preparation`, `PruneResult` or `TuneResult`}; empty where no stage is finished.

    Raises:
        InputError: a damaged file.

    Example:
        >>> load_stages("experiments")["TS1/prepare"].after.metrics.accuracy  # doctest: +SKIP
        95.1
        >>> load_stages("a folder without experiments")
        {}
    """
    root = Path(output) / "checkpoints"
    found = {}
    for stage, kind in (("prepare", Preparation), ("prune", PruneResult), ("finetune", TuneResult)):
        for path in sorted(root.glob(f"*/{stage}.json")):
            data = _read_record(path, STAGE_FORMAT)
            if data is not None:
                found[f"{path.parent.name}/{stage}"] = from_plain(kind, data["result"])
    return found


def _read_record(path: Path, format: str) -> dict[str, Any] | None:
    """The content of a JSON file of this format; None for one of another."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    return data if isinstance(data, dict) and data.get("format") == format else None


# --------------------------------------------------------------------------------------------------- records and JSON


def to_plain(record: Any) -> Any:
    """A record as plain JSON values; the parts that know how to write themselves do."""
    if isinstance(record, Report | ExperimentConfig):
        return record.to_dict()
    if dataclasses.is_dataclass(record):
        return {part.name: to_plain(getattr(record, part.name)) for part in dataclasses.fields(record)}
    if isinstance(record, dict):
        return {str(key): to_plain(value) for key, value in record.items()}
    return to_json(record)


def from_plain(kind: type[Any], data: dict[str, Any]) -> Any:
    """The record of `to_plain`'s values."""
    return read_record(kind, data, **_PARTS.get(kind, {}))


def _reader(kind: type[Any]) -> Callable[[Any], Any]:
    return lambda data: from_plain(kind, data)


def _read_metrics(data: Any) -> ModelMetrics:
    return ModelMetrics.from_dict(read_json(data))


_PARTS: dict[type[Any], dict[str, Callable[[Any], Any]]] = {
    ModelState: {"metrics": _read_metrics},
    Preparation: {"before": _reader(ModelState), "after": _reader(ModelState), "history": read_json},
    PruneResult: {"report": Report.from_dict},
    TuneResult: {"metrics": _read_metrics, "history": read_json},
    MethodResult: {"report": Report.from_dict},
    ExperimentResults: {
        "config": ExperimentConfig.from_dict,
        "data": _reader(DataFacts),
        "environment": _reader(Environment),
        "preparation": _reader(Preparation),
        "methods": lambda found: {name: from_plain(MethodResult, result) for name, result in found.items()},
    },
}
