"""The report of one pruning run: what was asked, what happened, and why.

A `Report` is inert data. It prints itself in a terminal, shows itself in a notebook, and saves itself as a page with
figures (``.html``), a document (``.md``) or data (``.json``); `Report.load` reads the data back and executes no code.
Rendering lives in `cleanai.rendering` and `cleanai.plots`, words in `cleanai.texts`.

Shares and ratios are fractions (0.3 = 30 %), accuracies are percent, sizes are MB = 10^6 bytes, times are named by
their unit. Indices of units are always those of the original model, scores follow "higher = keep".
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cleanai.errors import InputError
from cleanai.evaluate import ModelMetrics
from cleanai.recover import Recovery, RepairedBlock
from cleanai.serialize import (
    field_names,
    format_json,
    many,
    optional,
    read_json,
    read_number,
    read_record,
    to_json,
    write_text,
)
from cleanai.texts import check_language

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "BlockRecord",
    "BudgetRecord",
    "FrozenRecord",
    "GroupRecord",
    "LayerRecord",
    "ProofRecord",
]

FORMAT = "cleanai-report"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class LayerRecord:
    """One dimension of one parameter that shrank with its group.

    Attributes:
        name: the module's path.
        parameter: the full parameter name.
        dim: the dimension.
        role: "input" where it is summed over (the columns of a weight), else "output".
        before, after: the sizes of that dimension.

    Example:
        >>> layer = LayerRecord("conv2", "conv2.weight", 1, "input", before=16, after=12)
        >>> layer.before - layer.after  # so many input channels went
        4
    """

    name: str
    parameter: str
    dim: int
    role: str
    before: int
    after: int


@dataclass(frozen=True)
class GroupRecord:
    """Units that live or die together: which went, with what scores, and which layers followed.

    Attributes:
        name: the group's name.
        kind: what the units are: "channels", "heads", "head dimensions" or "groups".
        layers: the dimensions that shrank with it.
        units_before, units_after: how many there were and are.
        removed: indices of units in the original numbering.
        scores: one number per original unit, where there are any.
        asked_ratio: the share of this group that was asked for.
        note: why it was treated specially.

    Raises:
        InputError: these contradict each other.

    Example:
        >>> layer = LayerRecord("conv1", "conv1.weight", 0, "output", before=4, after=3)
        >>> group = GroupRecord("conv1", "channels", (layer,), 4, 3, removed=(2,), scores=(0.9, 0.5, 0.1, 0.7))
        >>> group.removed_share, group.cut
        (0.25, (0.1, 0.5))
    """

    name: str
    kind: str
    layers: tuple[LayerRecord, ...]
    units_before: int
    units_after: int
    removed: tuple[int, ...] = ()
    scores: tuple[float, ...] | None = None
    asked_ratio: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        removed = set(self.removed)
        if len(removed) != len(self.removed) or len(removed) != self.units_before - self.units_after:
            raise InputError(
                f"Group {self.name!r}: {len(self.removed)} removed indices ({len(removed)} different) do not fit "
                f"{self.units_before} units before and {self.units_after} after."
            )
        if any(not 0 <= index < self.units_before for index in removed):
            raise InputError(f"Group {self.name!r}: a removed index is outside 0 … {self.units_before - 1}.")
        if self.scores is not None and len(self.scores) != self.units_before:
            raise InputError(f"Group {self.name!r}: {len(self.scores)} scores for {self.units_before} units.")

    @property
    def removed_share(self) -> float:
        """The share of the units that went, 0 to 1."""
        return len(self.removed) / self.units_before if self.units_before else 0.0

    @property
    def removed_scores(self) -> list[float]:
        """The scores of the removed units, in the order of ``removed``; empty without scores."""
        return [self.scores[index] for index in self.removed] if self.scores is not None else []

    @property
    def kept_scores(self) -> list[float]:
        """The scores of the kept units, in their original order; empty without scores."""
        gone = set(self.removed)
        return [score for index, score in enumerate(self.scores or ()) if index not in gone]

    @property
    def cut(self) -> tuple[float, float] | None:
        """The highest score removed and the lowest kept; None when nothing was scored, or all or none went."""
        removed, kept = self.removed_scores, self.kept_scores
        return (max(removed), min(kept)) if removed and kept else None


@dataclass(frozen=True)
class BlockRecord:
    """A residual block that could be dropped whole: its size in the original model, and whether it went.

    Attributes:
        name: the block's path.
        kind: its class.
        parameters, macs: how many it has in the original model.
        removed: whether it went.
        score: higher = keep; None = not scored.
        note: why it was treated specially.

    Example:
        >>> blocks = [BlockRecord("layer1.1", "BasicBlock", 73_984, 75_497_472, removed=True, score=0.1)]
        >>> sum(block.parameters for block in blocks if block.removed)
        73984
    """

    name: str
    kind: str
    parameters: int
    macs: int
    removed: bool
    score: float | None = None
    note: str = ""


@dataclass(frozen=True)
class FrozenRecord:
    """Layers whose channels were never candidates, and the reason.

    Attributes:
        layers: the module paths.
        channels: how many channels that is.
        reason: an English sentence that `cleanai.texts` can translate.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import StructuredPruner, measure_model
        >>> net, inputs = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 3)
        >>> pruner = StructuredPruner(net, inputs, pruning_ratio=0.25)
        >>> smaller = pruner.prune()
        >>> report = pruner.report(metrics={"original": measure_model(net, inputs)})
        >>> report.frozen[-1]
        FrozenRecord(layers=('2',), channels=2, reason='the output of the model')
    """

    layers: tuple[str, ...]
    channels: int
    reason: str


@dataclass(frozen=True)
class ProofRecord:
    """The verification's result, as a report keeps it.

    Attributes:
        passed: None when the proof was switched off.
        max_relative_error, tolerance, dtype, runs, seconds: as in `cleanai.Verification`; None where there was none.
        note: what is wrong beyond a difference, or why there was no proof.

    Example:
        >>> proof = ProofRecord(True, max_relative_error=3e-16, tolerance=1e-9, dtype="float64", runs=1, seconds=0.02)
        >>> proof.max_relative_error <= proof.tolerance
        True
    """

    passed: bool | None
    max_relative_error: float | None
    tolerance: float | None
    dtype: str
    runs: int
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class BudgetRecord:
    """What was asked against what was reached, as removed shares of the whole model, 0 to 1.

    Attributes:
        target: "channels", "params", "macs" or "latency".
        asked, reached: the share of the target.
        channels, params, macs: what was reached in each measure.
        latency: what was reached in latency; None = not measured.
        note: why asked and reached differ.

    Example:
        >>> budget = BudgetRecord("macs", asked=0.5, reached=0.497, channels=0.29, params=0.51, macs=0.497)
        >>> round(100 * (budget.reached - budget.asked), 1)  # in points
        -0.3
    """

    target: str
    asked: float
    reached: float
    channels: float
    params: float
    macs: float
    latency: float | None = None
    note: str = ""


@dataclass(frozen=True, repr=False)
class Report:
    """One pruning run, whole: settings, measurements by stage, groups, residual blocks, frozen layers, proof, budget.

    `StructuredPruner.report` makes it. It prints itself in a terminal, shows itself in a notebook, and saves itself as
    a page, a document or data. Shares and ratios are fractions (0.3 = 30 %), accuracies are percent.
    ``dataclasses.replace(report, language="tr")`` gives the same report in Turkish.

    Attributes:
        model_name: what the report calls the model.
        created: when, in UTC, as ISO 8601 writes it.
        versions: {package: version}.
        settings: what was asked for, as plain data.
        metrics: measurements by stage in order ("original", "pruned", "fine-tuned", …); the first is what the others
            are compared with.
        groups: one record per group: ``name``, ``units_before``, ``units_after``, ``removed``, ``scores``, ``layers``.
        frozen: layers whose channels were never candidates, each with the ``reason``.
        proof: what the proof said.
        budget: what was ``asked`` against what was ``reached``, as removed shares.
        history: one dictionary per epoch of a fine-tuning ("epoch", "loss", "accuracy", …).
        warnings: what the reader should know, as sentences.
        language: "en" or "tr".
        blocks: the residual blocks that could go, and whether they went.
        recovery: what a repair did; None where there was none.

    Raises:
        InputError: an unknown language.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from cleanai import StructuredPruner
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> pruner = StructuredPruner(net, torch.zeros(1, 3), pruning_ratio=0.25)
        >>> _ = pruner.prune()
        >>> metrics = {"original": ModelMetrics(50, 2e-4, 40), "pruned": ModelMetrics(38, 1.5e-4, 30)}
        >>> report = pruner.report(metrics=metrics)  # measured if left out
        >>> report.groups[0].name, len(report.groups[0].removed), report.proof.passed
        ('0', 2, True)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = report.save(f"{folder}/report.json")
        ...     loaded = Report.load(path)
        >>> loaded.groups == report.groups
        True
    """

    model_name: str
    created: str
    versions: dict[str, str]
    settings: dict[str, Any]
    metrics: dict[str, ModelMetrics]
    groups: tuple[GroupRecord, ...]
    frozen: tuple[FrozenRecord, ...]
    proof: ProofRecord
    budget: BudgetRecord
    history: list[dict[str, Any]] | None = None
    warnings: list[str] = field(default_factory=list)
    language: str = "en"
    blocks: tuple[BlockRecord, ...] = ()
    recovery: Recovery | None = None

    def __post_init__(self) -> None:
        check_language(self.language)

    def __str__(self) -> str:
        from cleanai.rendering import render_text

        return render_text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from cleanai.rendering import render_notebook

        return render_notebook(self)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values; numbers that JSON lacks become "NaN", "Infinity" or "-Infinity"."""
        parts = {name: getattr(self, name) for name in field_names(Report)}
        parts["metrics"] = {stage: metrics.to_dict() for stage, metrics in self.metrics.items()}
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **to_json(parts)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """The report whose ``data`` `to_dict` wrote; everything is checked, nothing is executed.

        Raises:
            InputError: it is damaged, or something else.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError(f'This is not a CleanAI report: its "format" is not "{FORMAT}".')
        if data.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"This report has format version {data.get('format_version')}; "
                f"this version of CleanAI reads version {FORMAT_VERSION}."
            )
        parts = {name: data[name] for name in data if name not in ("format", "format_version")}
        try:
            return read_record(cls, parts, **_REPORT_PARTS)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise InputError(f"This CleanAI report is damaged: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the report as ``.html``, ``.md`` or ``.json``, by the suffix of ``path``, and returns the path.

        Missing folders are made. The file is rendered first, written beside its destination and then renamed, so that
        a failure leaves an older file as it was.

        Raises:
            InputError: another suffix.
        """
        target = Path(path)
        text = _renderer(target)(self)
        write_text(target, text)
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Report:
        """Reads a report saved as ``.json`` at ``path``; executes no code.

        Raises:
            InputError: there is no such file, or it is no report.
        """
        source = Path(path)
        if source.suffix.lower() != ".json":
            raise InputError(f"Report.load reads .json files, not {source.name!r}; save the report as .json too.")
        try:
            data = json.loads(source.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(f"There is no report at {str(source)!r}.") from error
        except ValueError as error:
            raise InputError(f"{str(source)!r} is not JSON: {error}") from error
        return cls.from_dict(data)


# ---------------------------------------------------------------- saving


def _renderer(path: Path) -> Callable[[Report], str]:
    """The function that renders a report for the path's suffix."""
    from cleanai import rendering

    renderers: dict[str, Callable[[Report], str]] = {
        ".html": rendering.render_page,
        ".md": rendering.render_markdown,
        ".json": _render_json,
    }
    suffix = path.suffix.lower()
    if suffix not in renderers:
        choices = ", ".join(renderers)
        raise InputError(f"A report is saved as one of {choices}; {path.name!r} ends in {suffix or 'no suffix'!r}.")
    return renderers[suffix]


def _render_json(report: Report) -> str:
    return format_json(report.to_dict())


# ---------------------------------------------------------------- JSON and back


def _layer(data: dict[str, Any]) -> LayerRecord:
    return read_record(LayerRecord, data)


def _group(data: dict[str, Any]) -> GroupRecord:
    return read_record(
        GroupRecord,
        data,
        layers=many(_layer),
        removed=many(int),
        scores=optional(many(read_number)),
        asked_ratio=optional(read_number),
    )


def _block(data: dict[str, Any]) -> BlockRecord:
    return read_record(BlockRecord, data, score=optional(read_number))


def _frozen(data: dict[str, Any]) -> FrozenRecord:
    return read_record(FrozenRecord, data, layers=many(str))


def _proof(data: dict[str, Any]) -> ProofRecord:
    return read_record(ProofRecord, data, max_relative_error=optional(read_number), tolerance=optional(read_number))


def _repaired(data: dict[str, Any]) -> RepairedBlock:
    return read_record(RepairedBlock, read_json(data), layers=many(str))


def _recovery(data: dict[str, Any]) -> Recovery:
    return read_record(Recovery, data, blocks=many(_repaired))


def _budget(data: dict[str, Any]) -> BudgetRecord:
    return read_record(BudgetRecord, read_json(data))


def _metrics(data: dict[str, Any]) -> dict[str, ModelMetrics]:
    return {stage: ModelMetrics.from_dict(read_json(values)) for stage, values in data.items()}


_REPORT_PARTS: dict[str, Callable[[Any], Any]] = {
    "settings": read_json,
    "metrics": _metrics,
    "groups": many(_group),
    "blocks": many(_block),
    "frozen": many(_frozen),
    "proof": _proof,
    "recovery": optional(_recovery),
    "budget": _budget,
    "history": read_json,
}
