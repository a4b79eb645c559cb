"""The report of one pruning run: what was asked, what happened, and why.

A `Report` is inert data. It prints itself in a terminal, shows itself in a notebook, and saves itself as a page with
figures (`.html`), a document (`.md`) or data (`.json`); `Report.load` reads the data back and executes no code.
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

FORMAT = "cleanai-report"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class LayerRecord:
    """One dimension of one parameter that shrank with its group.

    `name` is the module path, `parameter` the full parameter name, `role` is "output" or "input", `before` and `after`
    are sizes of dimension `dim`.
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

    `kind` names the units ("channels", "heads", "head dimensions", "groups"). `removed` are indices of units in the
    original numbering; `scores`, where there are any, hold one number per original unit. `asked_ratio` is the share of
    this group that was asked for, `note` says why it was treated specially. Raises `InputError` when these contradict
    each other.

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
        """The scores of the removed units, in the order of `removed`; empty without scores."""
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

    `kind` is its class, `score` follows "higher = keep" (None = not scored), `note` says why it was treated specially.
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
    """Layers whose channels were never candidates, and the reason."""

    layers: tuple[str, ...]
    channels: int
    reason: str


@dataclass(frozen=True)
class ProofRecord:
    """The verification's result; `passed` is None when it was switched off."""

    passed: bool | None
    max_relative_error: float | None
    tolerance: float | None
    dtype: str
    runs: int
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class BudgetRecord:
    """What was asked against what was reached, as removed shares of the whole model.

    `target` is "channels", "params", "macs" or "latency"; `asked` and `reached` are about it, the other four fields
    give what was reached in each measure (`latency` None = not measured). `note` says why asked and reached differ.
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

    `metrics` maps stages in order ("original", "pruned", "fine-tuned", …) to measurements; the first is what the
    others are compared with. `history` holds one dictionary per epoch ("epoch", "loss", "accuracy", …). `language`
    is "en" or "tr"; `dataclasses.replace(report, language="tr")` gives the same report in Turkish.

    Raises `InputError` for an unknown language.

        report.save("report.html")
        Report.load("report.json").groups[0].removed
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
        """The report that `to_dict` wrote; raises `InputError` when the data is something else."""
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
        """Write the report as `.html`, `.md` or `.json` by the path's suffix and return the path.

        Missing folders are made. The file is rendered first, written beside its destination and then renamed, so that
        a failure leaves an older file as it was. Raises `InputError` for another suffix.
        """
        target = Path(path)
        text = _renderer(target)(self)
        write_text(target, text)
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Report:
        """Read a report saved as `.json`; executes no code. Raises `InputError` when the file is not one."""
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
