"""A report as text, Markdown and HTML: one set of tables and sentences, three ways to write them.

``*_table`` functions turn the report into strings once; ``render_*`` functions only lay those strings out, so the
terminal, the notebook, the page and the document cannot disagree. HTML goes through jinja2 with escaping always on.
"""

from __future__ import annotations

import base64
import functools
import html
import io
import re
import statistics
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cleanai.texts import (
    MISSING,
    local_number,
    percent,
    say,
    scaled,
    short_number,
    signed,
    signed_percent,
    significant,
    term,
    terms,
    whole_number,
)

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure

    from cleanai.evaluate import Latency, ModelMetrics
    from cleanai.report import GroupRecord, Report

__all__ = [
    "Table",
    "blocks_table",
    "budget_table",
    "frozen_table",
    "groups_table",
    "metrics_table",
]

TERMINAL_WIDTH = 106  # where running text is wrapped
TERMINAL_ROWS = 40  # pruned groups listed in a terminal
TERMINAL_REASONS = 12  # reasons for freezing listed in a terminal
SHORT_RUNS = 4  # runs of indices shown before "…"
# How much a page lists, to stay under 2 MB, and a notebook, whose cells are saved with it: `index: score` pairs while
# all of them fit, else indices, else the first runs of them. The JSON report always has everything.
PAGE_LIMITS = (20_000, 120_000)
NOTEBOOK_LIMITS = (2_000, 5_000)
FIGURE_DPI = 120


@dataclass(frozen=True, repr=False)
class Table:
    """A titled table of strings.

    Prints itself in a terminal and shows itself in a notebook, on bright and dark backgrounds.

    Attributes:
        title: stands above it.
        columns: the heads.
        rows: the cells, row by row.
        align: one letter per column, l or r.
        notes: sentences under it.

    Example:
        >>> Table("Channels", ("layer", "kept"), (("conv1", "12"), ("conv2", "9")), "lr")
        Channels
          layer  kept
          -----------
          conv1    12
          conv2     9
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    align: str
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return text_table(self)

    def _repr_html_(self) -> str:
        return html_environment().get_template("table.html.j2").render(table=self)


# ---------------------------------------------------------------- tables


def metrics_table(report: Report) -> Table:
    """Before and after: one row per quantity, one column per stage and its change against the first stage.

    Args:
        report: in the language of which the table is written.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import StructuredPruner, measure_model
        >>> net, inputs = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 3)
        >>> pruner = StructuredPruner(net, inputs, pruning_ratio=0.25)
        >>> smaller = pruner.prune()
        >>> metrics = {"original": measure_model(net, inputs), "pruned": measure_model(smaller, inputs)}
        >>> [row[:3] for row in metrics_table(pruner.report(metrics=metrics)).rows[2:]]
        [('MACs', '40', '30'), ('FLOPs', '80', '60')]
    """
    language = report.language
    stages = list(report.metrics)
    columns = [say(language, "quantity")]
    for position, stage in enumerate(stages):
        columns += [term(language, stage)] + ([say(language, "change")] if position else [])
    rows = [_metrics_row(report, quantity) for quantity in _quantities(language)] if stages else []
    rows = [row for row in rows if any(cell != MISSING for cell in row[1:])]
    notes = _metrics_notes(report) if stages else ()
    return Table(say(language, "Before and after"), tuple(columns), tuple(rows), "l" + "r" * (len(columns) - 1), notes)


@dataclass(frozen=True)
class _Quantity:
    label: str
    number: Callable[[ModelMetrics], float | None]
    text: Callable[[ModelMetrics], str]
    difference: Callable[[float], str] | None = None  # how a change is written where a share would mislead


def _quantities(language: str) -> list[_Quantity]:
    """The rows of the before/after table: a label, the number that changes are taken of, and how it is written."""

    def accuracy(metrics: ModelMetrics) -> str:
        return MISSING if metrics.accuracy is None else percent(metrics.accuracy / 100, language, digits=2)

    def loss(metrics: ModelMetrics) -> str:
        return MISSING if metrics.loss is None else significant(metrics.loss, language=language)

    def points(change: float) -> str:
        return say(language, "{value} points", value=signed(change, 2, language))

    return [
        _Quantity(say(language, "Parameters"), lambda m: m.parameters, lambda m: whole_number(m.parameters, language)),
        _Quantity(say(language, "Size"), lambda m: m.size_mb, lambda m: f"{_megabytes(m.size_mb, language)} MB"),
        _Quantity(say(language, "MACs"), lambda m: m.macs, lambda m: scaled(m.macs, language)),
        _Quantity(say(language, "FLOPs"), lambda m: m.flops, lambda m: scaled(m.flops, language)),
        _Quantity(
            say(language, "Latency"),
            lambda m: m.latency.median_ms if m.latency else None,
            lambda m: latency_text(m.latency, language),
        ),
        _Quantity(say(language, "Accuracy"), lambda m: m.accuracy, accuracy, difference=points),
        _Quantity(say(language, "Loss"), lambda m: m.loss, loss, difference=lambda change: signed(change, 3, language)),
    ]


def _metrics_row(report: Report, quantity: _Quantity) -> tuple[str, ...]:
    first, *others = report.metrics.values()
    cells = [quantity.label, quantity.text(first)]
    for metrics in others:
        cells += [quantity.text(metrics), _change(report, quantity, first, metrics)]
    return tuple(cells)


def _change(report: Report, quantity: _Quantity, first: ModelMetrics, metrics: ModelMetrics) -> str:
    """The change against the first stage: a share of it, or the difference where that says more."""
    before, after = quantity.number(first), quantity.number(metrics)
    if before is None or after is None:
        return MISSING
    if quantity.difference is not None:
        return quantity.difference(after - before)
    is_latency = quantity.label == say(report.language, "Latency")
    if before == 0 or (is_latency and not are_comparable([first.latency, metrics.latency])):
        return MISSING
    return signed_percent(after / before - 1, report.language)


def latency_text(latency: Latency | None, language: str, unit: str = " ms") -> str:
    """A latency with its spread; a star marks one that was disturbed."""
    if latency is None:
        return MISSING
    mark = "*" if latency.disturbed else ""
    median, spread = significant(latency.median_ms, 3, language), significant(latency.iqr_ms, 2, language)
    return f"{median} ± {spread}{unit}{mark}"


def _megabytes(size: float, language: str) -> str:
    return whole_number(round(size), language) if size >= 1000 else significant(size, language=language)


def are_comparable(latencies: Sequence[Latency | None]) -> bool:
    """Whether latencies can be compared: same batch size and CPU threads, and the machine at rest each time."""
    conditions = {
        (latency.batch_size, latency.num_threads, latency.disturbed) if latency else None for latency in latencies
    }
    return len(conditions) == 1 and not any(latency is None or latency.disturbed for latency in latencies)


def _metrics_notes(report: Report) -> tuple[str, ...]:
    """Units, what changes are against, and the conditions of the measurements."""
    language, metrics = report.language, report.metrics
    return (
        say(language, "Changes are against “{stage}”.", stage=term(language, next(iter(metrics)))),
        say(
            language,
            "MB = 10^6 bytes; MACs = multiply-accumulates of one call on the example inputs; FLOPs = 2 × MACs.",
        ),
        *measurement_notes(metrics, language),
    )


def measurement_notes(metrics: dict[str, ModelMetrics], language: str) -> list[str]:
    """The conditions that the measurements were taken under, stages with equal ones together."""
    notes = []
    timed = {stage: m.latency for stage, m in metrics.items() if m.latency}
    phrase = "Latency: median ± interquartile range; batch size {batch}, CPU threads {threads}; {runs}."
    settings = {stage: (latency.batch_size, latency.num_threads) for stage, latency in timed.items()}
    for (batch, threads), stages in _by_value(settings).items():
        runs = [
            f"{term(language, stage)}: {say(language, '{n} runs', n=whole_number(timed[stage].runs, language))}"
            for stage in stages
        ]
        notes.append(say(language, phrase, batch=batch, threads=threads, runs=", ".join(runs)))
    if len(set(settings.values())) > 1:
        phrase = "Latencies were measured under different conditions, so their change is not given."
        notes.append(say(language, phrase))
    if any(latency.disturbed for latency in timed.values()):
        notes.append(
            say(
                language,
                "* The machine was disturbed while this latency was measured; changes from or to it are not given.",
            )
        )
    counted = {stage: m.samples for stage, m in metrics.items() if m.samples is not None}
    for samples, stages in _by_value(counted).items():
        phrase = "Accuracy and loss on {samples} samples ({stages})."
        notes.append(
            say(language, phrase, samples=whole_number(samples, language), stages=_stage_names(stages, language))
        )
    return notes


def _by_value(values: dict[str, Any]) -> dict[Any, list[str]]:
    """The keys that share each value."""
    merged: dict[Any, list[str]] = {}
    for key, value in values.items():
        merged.setdefault(value, []).append(key)
    return merged


def _stage_names(stages: Iterable[str], language: str) -> str:
    return ", ".join(term(language, stage) for stage in stages)


def budget_table(report: Report) -> Table:
    """Asked against reached, as removed shares of the whole model, in all measures.

    Args:
        report: in the language of which the table is written.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import StructuredPruner, measure_model
        >>> net, inputs = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 3)
        >>> pruner = StructuredPruner(net, inputs, pruning_ratio=0.25)
        >>> smaller = pruner.prune()
        >>> report = pruner.report(metrics={"original": measure_model(net, inputs)})
        >>> budget_table(report).rows[0]
        ('Channels', '25.0 %', '25.0 %', '0.0 points')
    """
    language, budget, stages = report.language, report.budget, list(report.metrics.values())
    labels = {"channels": "Channels", "params": "Parameters", "macs": "MACs", "latency": "Latency"}
    rows = []
    for target, label in labels.items():
        is_target = target == budget.target
        reached = budget.reached if is_target else getattr(budget, target)
        if target == "latency" and not are_comparable([metrics.latency for metrics in stages[:2]]):
            reached = None
        difference = MISSING
        if is_target and reached is not None:
            value = signed(100 * (reached - budget.asked), 1, language)
            difference = say(language, "{value} points", value=value)
        asked = percent(budget.asked, language) if is_target else MISSING
        rows.append((say(language, label), asked, percent(reached, language), difference))
    if report.blocks:
        rows.append(_blocks_budget(report))
    heads = ("share removed", "asked", "reached", "difference")
    notes = (terms(language, budget.note),) if budget.note else ()
    title = say(language, "Asked against reached")
    return Table(title, tuple(say(language, head) for head in heads), tuple(rows), "lrrr", notes)


def _blocks_budget(report: Report) -> tuple[str, str, str, str]:
    """The share of the residual blocks that was asked for, and the share that went."""
    language = report.language
    asked = report.settings.get("depth_pruning_ratio")
    reached = sum(block.removed for block in report.blocks) / len(report.blocks)
    difference = MISSING
    if isinstance(asked, float):
        difference = say(language, "{value} points", value=signed(100 * (reached - asked), 1, language))
    share = percent(asked if isinstance(asked, float) else None, language)
    return say(language, "Residual blocks"), share, percent(reached, language), difference


def blocks_table(report: Report, limit: int | None = None) -> Table:
    """The residual blocks with their scores and what became of them.

    Args:
        report: in the language of which the table is written.
        limit: list so many of them, the dropped ones first; None lists all.

    Example:
        >>> import torch
        >>> from cleanai import StructuredPruner, measure_model
        >>> from cleanai.models import digits_resnet
        >>> net, inputs = digits_resnet(4), torch.zeros(1, 1, 8, 8)
        >>> pruner = StructuredPruner(net, inputs, depth_pruning_ratio=0.4, pruning_ratio=0)
        >>> smaller = pruner.prune()
        >>> report = pruner.report(metrics={"original": measure_model(net, inputs)})
        >>> [(row[0], row[1]) for row in blocks_table(report).rows]
        [('block1', 'ProjectedBlock'), ('block3', 'ProjectedBlock')]
    """
    language, shown = report.language, report.blocks
    if limit is not None and len(shown) > limit:
        shown = tuple(sorted(shown, key=lambda block: not block.removed)[:limit])
    heads = ("block", "kind", "parameter count", "MACs", "score", "outcome")
    rows = tuple(
        (
            block.name,
            block.kind,
            whole_number(block.parameters, language),
            scaled(block.macs, language),
            short_number(block.score, language),
            say(language, "removed" if block.removed else "kept"),
        )
        for block in shown
    )
    phrase = "{removed} of {total} residual blocks were dropped; their input goes on in place of their output."
    dropped = sum(block.removed for block in report.blocks)
    notes = [say(language, phrase, removed=dropped, total=len(report.blocks))]
    if dropped:
        notes.append(say(language, "Channels inside a dropped block are gone with it: their groups keep none."))
    if len(shown) < len(report.blocks):
        phrase = "{count} more blocks are not shown here; a saved report lists them all."
        notes.append(say(language, phrase, count=len(report.blocks) - len(shown)))
    notes += [f"{block.name}: {term(language, block.note)}" for block in shown if block.note]
    title = say(language, "Residual blocks")
    return Table(title, tuple(say(language, head) for head in heads), rows, "llrrrl", tuple(notes))


GROUP_HEADS = ("group", "kind", "before", "after", "removed", "asked", "indices removed")


def group_cells(report: Report, group: GroupRecord) -> tuple[str, ...]:
    """One row of the groups table."""
    return (
        group.name,
        term(report.language, group.kind),
        str(group.units_before),
        str(group.units_after),
        percent(group.removed_share, report.language),
        percent(group.asked_ratio, report.language),
        short_indices(group.removed, report.language),
    )


def groups_table(report: Report, limit: int | None = None) -> Table:
    """The pruned groups; those that stayed whole are counted in the notes by their reason.

    Args:
        report: in the language of which the table is written.
        limit: list so many of them; None lists all.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import StructuredPruner, measure_model
        >>> net, inputs = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 3)
        >>> pruner = StructuredPruner(net, inputs, pruning_ratio=0.25)
        >>> smaller = pruner.prune()
        >>> report = pruner.report(metrics={"original": measure_model(net, inputs)})
        >>> groups_table(report).rows[0][:6]
        ('1', '0', 'channels', '8', '6', '25.0 %')
    """
    language = report.language
    pruned = [group for group in report.groups if group.removed]
    shown = pruned if limit is None else pruned[:limit]
    rows = tuple((str(number), *group_cells(report, group)) for number, group in _numbered(report, shown))
    notes = [_groups_count(report, len(pruned))]
    if len(pruned) > len(shown):
        phrase = "{count} more pruned groups are not shown here; a saved report lists them all."
        notes.append(say(language, phrase, count=len(pruned) - len(shown)))
    whole: dict[str, int] = {}
    for group in report.groups:
        if not group.removed:
            whole[group.note] = whole.get(group.note, 0) + 1
    for note, count in whole.items():
        phrase = "Unpruned groups: {count} ({note})." if note else "Unpruned groups: {count}."
        notes.append(say(language, phrase, count=count, note=term(language, note)))
    notes += [f"{group.name}: {term(language, group.note)}" for group in shown if group.note]
    columns = ("#", *(say(language, head) for head in GROUP_HEADS))
    return Table(say(language, "Groups"), columns, rows, "rllrrrrl", tuple(notes))


def _numbered(report: Report, groups: Iterable[GroupRecord]) -> list[tuple[int, GroupRecord]]:
    """Groups with their numbers in the report, from 1; figures use the same numbers."""
    wanted = {id(group) for group in groups}
    return [(number, group) for number, group in enumerate(report.groups, 1) if id(group) in wanted]


def _groups_count(report: Report, pruned: int) -> str:
    if not report.groups:
        return say(report.language, "No group was found that can be pruned.")
    phrase = "{pruned} of {total} groups were pruned."
    return say(report.language, phrase, pruned=pruned, total=len(report.groups))


@dataclass(frozen=True)
class FrozenReason:
    """Everything that was frozen for one reason; `short` is `all` cut after a few layers and counted."""

    reason: str
    short: str
    all: str
    channels: str


def frozen_reasons(report: Report) -> list[FrozenReason]:
    """What was never a candidate, merged by reason."""
    merged: dict[str, tuple[list[str], int]] = {}
    for record in report.frozen:
        layers, channels = merged.get(record.reason, ([], 0))
        new = [layer for layer in record.layers if layer not in layers]
        merged[record.reason] = (layers + new, channels + record.channels)
    language = report.language
    return [
        FrozenReason(
            term(language, reason),
            _short_list(layers, language),
            ", ".join(layers) or MISSING,
            whole_number(channels, language),
        )
        for reason, (layers, channels) in merged.items()
    ]


def _short_list(items: Sequence[str], language: str, most: int = 3) -> str:
    if len(items) <= most:
        return ", ".join(items) or MISSING
    return ", ".join(items[:most]) + f", … ({say(language, '{count} in all', count=len(items))})"


def frozen_table(report: Report, limit: int | None = None) -> Table:
    """What was never a candidate, merged by reason.

    Args:
        report: in the language of which the table is written.
        limit: list so many reasons and their first layers; None lists all of both.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cleanai import StructuredPruner, measure_model
        >>> net, inputs = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 3)
        >>> pruner = StructuredPruner(net, inputs, pruning_ratio=0.25)
        >>> smaller = pruner.prune()
        >>> report = pruner.report(metrics={"original": measure_model(net, inputs)})
        >>> frozen_table(report).rows[-1]
        ('the output of the model', '2', '2')
    """
    language = report.language
    reasons = frozen_reasons(report)
    rows = tuple((item.reason, item.all if limit is None else item.short, item.channels) for item in reasons[:limit])
    columns = tuple(say(language, head) for head in ("reason", "layers", "channels"))
    notes = () if rows else (say(language, "Nothing was frozen."),)
    if len(reasons) > len(rows):
        phrase = "{count} more reasons are not shown here; a saved report lists them all."
        notes = (say(language, phrase, count=len(reasons) - len(rows)),)
    return Table(say(language, "Frozen"), columns, rows, "llr", notes)


def layers_table(report: Report, group: GroupRecord) -> Table:
    """The parameters that a group's removal made smaller."""
    language = report.language
    heads = ("layer", "parameter", "dimension", "role", "before", "after")
    rows = tuple(
        (layer.name, layer.parameter, str(layer.dim), term(language, layer.role), str(layer.before), str(layer.after))
        for layer in group.layers
    )
    return Table("", tuple(say(language, head) for head in heads), rows, "llrlrr")


def settings_rows(report: Report) -> list[tuple[str, str]]:
    """What the run was asked to do, as label and value."""
    return [
        (term(report.language, name.replace("_", " ")), _setting(value, report.language))
        for name, value in report.settings.items()
    ]


def _setting(value: Any, language: str) -> str:
    if value is None or value in ({}, [], ()):
        return MISSING
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_setting(item, language)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_setting(item, language) for item in value)
    if isinstance(value, bool):
        return term(language, str(value)) if language != "en" else ("yes" if value else "no")
    if isinstance(value, int | float):
        return local_number(str(value), language)
    return term(language, value) if isinstance(value, str) else str(value)


# ---------------------------------------------------------------- sentences


def proof_lines(report: Report) -> list[str]:
    """The verification's result as a sentence, and the numbers behind it when there are any."""
    language, proof = report.language, report.proof
    verdicts = {
        True: "The pruned model equals the original with the removed channels masked.",
        False: "The pruned model differs from the original with the removed channels masked.",
        None: "Verification was switched off.",
    }
    if any(block.removed for block in report.blocks):
        verdicts |= {
            True: "The pruned model equals the original with dropped blocks skipped and removed channels masked.",
            False: "The pruned model is not the original with dropped blocks skipped and removed channels masked.",
        }
    lines = [say(language, verdicts[proof.passed])]
    if proof.max_relative_error is not None:
        phrase = "Largest relative error {error}, tolerance {tolerance}, {dtype}, random inputs: {runs}, {seconds} s."
        error = local_number(f"{proof.max_relative_error:.1e}", language)
        tolerance = MISSING if proof.tolerance is None else f"{proof.tolerance:.0e}"
        seconds = local_number(f"{proof.seconds:.2g}", language)
        numbers = {"error": error, "tolerance": tolerance, "dtype": proof.dtype, "runs": proof.runs}
        lines.append(say(language, phrase, **numbers, seconds=seconds))
    if report.recovery is not None:
        lines.append(say(language, "This was proven after the cut; then the weights were repaired."))
    note = term(language, proof.note)
    repeated = note.lower() == lines[0].rstrip(".").lower()
    return lines + ([note] if note and not repeated else [])


_METHODS = {
    "batchnorm": "BatchNorm statistics were collected anew.",
    "bias": "Every layer's mean output was moved back to the original's.",
    "least_squares": "Every layer was solved anew by least squares, every block refined.",
}


def recovery_lines(report: Report) -> list[str]:
    """What was repaired after the cut, what that did to the blocks' outputs, and which layers were left; or nothing."""
    language, recovery = report.language, report.recovery
    if recovery is None:
        return []
    numbers = {"samples": recovery.samples, "seconds": local_number(f"{recovery.seconds:.2g}", language)}
    lines = [
        f"{say(language, _METHODS[recovery.method])} "
        + say(language, "Without labels or training, from {samples} samples in {seconds} s.", **numbers)
    ]
    if recovery.blocks and recovery.method == "least_squares":
        phrase = (
            "Median squared error of {count} block outputs on samples that the repair did not see, in shares of their "
            "variance: {before} before, {after} after."
        )
        before, after = (
            local_number(f"{statistics.median(getattr(block, side) for block in recovery.blocks):.3f}", language)
            for side in ("before", "after")
        )
        lines.append(say(language, phrase, count=len(recovery.blocks), before=before, after=after))
    lines += [
        say(
            language,
            "Not repaired: {layer} ({reason}).",
            layer=layer or say(language, "model"),
            reason=term(language, reason),
        )
        for layer, reason in recovery.skipped.items()
    ]
    return lines


def verdict(report: Report) -> str:
    """The verification's result in a word."""
    return say(report.language, {True: "proven", False: "failed", None: "not verified"}[report.proof.passed])


def short_indices(indices: Sequence[int], language: str, runs: int | None = SHORT_RUNS) -> str:
    """Indices as runs ("0–3, 7"), cut after a few runs and then counted; ``runs=None`` writes them all."""
    if not indices:
        return say(language, "none")
    pieces = [f"{low}" if low == high else f"{low}–{high}" for low, high in _runs(sorted(indices))]
    if runs is None or len(pieces) <= runs:
        return ", ".join(pieces)
    return ", ".join(pieces[:runs]) + f", … ({say(language, '{count} in all', count=len(indices))})"


def _runs(ordered: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending indices as inclusive runs."""
    runs: list[tuple[int, int]] = []
    for index in ordered:
        if runs and index == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], index)
        else:
            runs.append((index, index))
    return runs


def scored_indices(group: GroupRecord, language: str) -> str:
    """Every removed index with its score, in the original order."""
    pairs = sorted(zip(group.removed, group.removed_scores, strict=True))
    separator = ", " if language == "en" else "; "  # where the comma belongs to the numbers
    return separator.join(f"{index}: {short_number(score, language)}" for index, score in pairs)


def cut_line(report: Report, group: GroupRecord) -> str:
    """Where the cut through a group's scores lies."""
    if group.cut is None:
        return say(report.language, "No scores were recorded.") if group.scores is None else ""
    removed, kept = group.cut
    phrase = "Highest score removed {removed}, lowest score kept {kept}."
    return say(
        report.language,
        phrase,
        removed=short_number(removed, report.language),
        kept=short_number(kept, report.language),
    )


def created_line(report: Report) -> str:
    """When and with what the report was made."""
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    created = say(report.language, "Created {when}", when=report.created)
    return f"{created} · {versions}" if versions else created


# ---------------------------------------------------------------- terminal


def render_text(report: Report) -> str:
    """The report for a terminal: compact, without control characters, long lists cut and counted."""
    language = report.language
    metrics = metrics_table(report)
    parts = [
        printable(say(language, "Pruning report: {model}", model=report.model_name)),
        printable(created_line(report)),
        *([_text_warnings(report)] if report.warnings else []),
        *([_text_settings(report)] if report.settings else []),
        *([text_table(metrics)] if metrics.rows else []),
        text_table(budget_table(report)),
        "\n".join(
            [
                f"{say(language, 'Proof')}: {verdict(report)}",
                *(line for text in proof_lines(report) for line in wrap_text(text)),
            ]
        ),
        *(
            [
                "\n".join(
                    [say(language, "Recovery"), *(line for text in recovery_lines(report) for line in wrap_text(text))]
                )
            ]
            if report.recovery is not None
            else []
        ),
        *([text_table(blocks_table(report, limit=TERMINAL_ROWS))] if report.blocks else []),
        text_table(groups_table(report, limit=TERMINAL_ROWS)),
        text_table(frozen_table(report, TERMINAL_REASONS), widest=76),
    ]
    return "\n\n".join([f"{parts[0]}\n{parts[1]}", *parts[2:]])


def _text_warnings(report: Report) -> str:
    return "\n".join(
        [
            say(report.language, "Warnings"),
            *(f"  ! {printable(term(report.language, line))}" for line in report.warnings),
        ]
    )


def _text_settings(report: Report) -> str:
    pairs = " · ".join(f"{name}: {value}" for name, value in settings_rows(report) if value != MISSING)
    return "\n".join([say(report.language, "Settings"), *wrap_text(pairs)])


def wrap_text(text: str) -> list[str]:
    """A text in lines that fit the terminal, indented."""
    wrapped = textwrap.wrap(printable(text), TERMINAL_WIDTH - 2, break_long_words=False, break_on_hyphens=False)
    return [f"  {line}" for line in wrapped]


def text_table(table: Table, widest: int = 64) -> str:
    """A table in aligned columns under its title; empty columns are left out, long cells lose their middle."""
    lines = [table.title]
    if table.rows:
        used = [at for at in range(len(table.columns)) if any(row[at] != MISSING for row in table.rows)]
        rows = [[row[at] for at in used] for row in (table.columns, *table.rows)]
        align = "".join(table.align[at] for at in used)
        cells = [[shorten(printable(cell), widest) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        body = ["  ".join(map(_pad, row, widths, align)).rstrip() for row in cells]
        rule = "-" * max(map(len, body))
        lines += [f"  {line}" for line in (body[0], rule, *body[1:])]
    return "\n".join(lines + [line for note in table.notes for line in wrap_text(note)])


def _pad(cell: str, width: int, align: str) -> str:
    return cell.rjust(width) if align == "r" else cell.ljust(width)


def shorten(text: str, widest: int) -> str:
    """The text with its middle replaced by … when it is longer than `widest` characters."""
    if len(text) <= widest:
        return text
    head = (widest - 1) // 2
    return f"{text[:head]}…{text[len(text) - (widest - 1 - head) :]}"


def printable(text: str) -> str:
    """The text with line breaks and control characters written out, so that a name cannot steer the terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


# ---------------------------------------------------------------- Markdown


def render_markdown(report: Report) -> str:
    """The report as a Markdown document with every group, its layers, and every removed index."""
    language = report.language
    tables = [metrics_table(report), budget_table(report), groups_table(report), frozen_table(report)]
    parts = [f"# {markdown(say(language, 'Pruning report: {model}', model=report.model_name))}"]
    parts.append(markdown(created_line(report)))
    if report.warnings:
        parts.append(f"## {say(language, 'Warnings')}")
        parts.append("\n".join(f"- {markdown(term(language, line))}" for line in report.warnings))
    parts += [_markdown_table(table) for table in tables[:2] if table.rows]
    parts += [f"## {say(language, 'Proof')}", f"**{verdict(report)}** " + markdown(" ".join(proof_lines(report)))]
    if report.recovery is not None:
        parts += [f"## {say(language, 'Recovery')}", markdown(" ".join(recovery_lines(report)))]
    parts += [_markdown_table(blocks_table(report))] if report.blocks else []
    parts += [_markdown_table(table) for table in tables[2:]]
    parts += [_markdown_group(report, number, group) for number, group in enumerate(report.groups, 1) if group.removed]
    if report.settings:
        parts.append(f"## {say(language, 'Settings')}")
        parts.append("\n".join(f"- {markdown(name)}: {markdown(value)}" for name, value in settings_rows(report)))
    return "\n\n".join(parts) + "\n"


def _markdown_group(report: Report, number: int, group: GroupRecord) -> str:
    """One group's layers and removed indices, folded away."""
    summary = html.escape(printable(f"{number} · {group.name} · {say(report.language, 'details')}"))
    label, listed = _listed_indices(report, group, with_scores=True, runs=None)
    body = [_markdown_table(layers_table(report, group)), f"{label}: {listed}", cut_line(report, group)]
    body = "\n\n".join(part for part in body if part)
    return f"<details><summary>{summary}</summary>\n\n{body}\n\n</details>"


def _markdown_table(table: Table) -> str:
    lines = [f"## {table.title}", ""] if table.title else []
    if table.rows:
        lines.append(_markdown_row(table.columns))
        lines.append("|" + "|".join("---:" if side == "r" else "---" for side in table.align) + "|")
        lines += [_markdown_row(row) for row in table.rows] + [""]
    lines += [f"- {markdown(note)}" for note in table.notes]
    return "\n".join(lines).rstrip()


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(markdown(cell) for cell in cells) + " |"


def markdown(text: str) -> str:
    """Text that Markdown and the HTML inside it show as it is."""
    escaped = html.escape(printable(text), quote=False)
    # An underscore inside a word is plain already; escaping it would only make "layer_1" hard to read in the source.
    return re.sub(r"([\\`*\[\]|~#])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", lambda found: "\\" + found[0], escaped)


def _listed_indices(report: Report, group: GroupRecord, with_scores: bool, runs: int | None) -> tuple[str, str]:
    """A label and the list of a group's removed indices, with scores where wanted and known."""
    if with_scores and group.scores is not None:
        return say(report.language, "indices removed: score"), scored_indices(group, report.language)
    return say(report.language, "indices removed"), short_indices(group.removed, report.language, runs)


# ---------------------------------------------------------------- HTML


def render_page(report: Report) -> str:
    """The report as one self-contained HTML page with figures; no script, nothing fetched from anywhere."""
    page = html_environment().get_template("page.html.j2")
    return page.render(**_html_parts(report, PAGE_LIMITS), figures=_figures(report))


def render_notebook(report: Report) -> str:
    """The report for a notebook cell: the page's tables without figures; equal reports give equal text."""
    return html_environment().get_template("notebook.html.j2").render(**_html_parts(report, NOTEBOOK_LIMITS))


def with_minus(text: str) -> str:
    """The text with a true minus sign before numbers; terminals keep the hyphen, which every encoding has."""
    return re.sub(r"(?<![\w.])-(?=%?\d)", "−", text)


@functools.cache
def html_environment() -> Environment:
    """What renders the HTML templates: escaping always on, control characters written out."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("cleanai", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["minus"] = with_minus
    return environment


def _visible(value: Any) -> Any:
    """Plain text without control characters, which HTML forbids; what is markup already passes unchanged."""
    return printable(value) if type(value) is str else value


def _html_parts(report: Report, limits: tuple[int, int]) -> dict[str, Any]:
    """Everything the templates show, as strings and tables; `limits` as in `PAGE_LIMITS`."""
    listed = sum(len(group.removed) for group in report.groups)
    with_scores = listed <= limits[0]
    runs = None if listed <= limits[1] else max(10, limits[1] // (4 * len(report.groups)))
    return {
        "report": report,
        "language": report.language,
        "say": functools.partial(say, report.language),
        "title": say(report.language, "Pruning report: {model}", model=report.model_name),
        "created": created_line(report),
        "tiles": _tiles(report),
        "warnings": [term(report.language, line) for line in report.warnings],
        "verdict": verdict(report),
        "verdict_class": {True: "proven", False: "failed", None: "unproven"}[report.proof.passed],
        "proof": proof_lines(report),
        "recovery": recovery_lines(report),
        "metrics": metrics_table(report),
        "budget": budget_table(report),
        "blocks": blocks_table(report) if report.blocks else None,
        "frozen": frozen_reasons(report),
        "groups_note": _groups_count(report, sum(1 for group in report.groups if group.removed)),
        "groups": [
            _group_part(report, number, group, with_scores, runs) for number, group in enumerate(report.groups, 1)
        ],
        "listing_notes": _listing_notes(report, with_scores, runs),
        "settings": settings_rows(report),
    }


def _listing_notes(report: Report, with_scores: bool, runs: int | None) -> list[str]:
    """How to read the lists of indices, and what they leave out."""
    phrases = ["Indices are those of the original model; a higher score means keep."]
    if not with_scores and any(group.scores is not None for group in report.groups):
        phrases.append("Scores of single units are in the JSON report: there are too many to list here.")
    if runs is not None:
        phrases.append("Long lists of indices are cut here; the JSON report has them whole.")
    return [say(report.language, phrase) for phrase in phrases]


def _group_part(report: Report, number: int, group: GroupRecord, with_scores: bool, runs: int | None) -> dict[str, Any]:
    label, listed = _listed_indices(report, group, with_scores, runs)
    return {
        "number": number,
        "cells": group_cells(report, group),
        "pruned": bool(group.removed),
        "note": term(report.language, group.note),
        "layers": layers_table(report, group),
        "indices_label": label,
        "indices": listed if group.removed else "",
        "cut": cut_line(report, group),
        "kept_percent": round(100 * (1 - group.removed_share), 1),
    }


def _tiles(report: Report) -> list[tuple[str, str, str]]:
    """The page's headline numbers: quantity, last stage's value, change against the first."""
    table = metrics_table(report)
    labels = [say(report.language, label) for label in ("Parameters", "MACs", "Latency", "Accuracy")]
    if len(report.metrics) < 2:
        return []
    return [(row[0], row[-2], row[-1]) for row in table.rows if row[0] in labels and row[-2] != MISSING]


def _figures(report: Report) -> dict[str, dict[str, str]]:
    """The page's figures as embedded PNG, by place; what has no data has no figure."""
    from cleanai import plots

    makers: dict[str, tuple[str, Callable[[], Figure], bool]] = {
        "metrics": ("Before and after", lambda: plots.plot_metrics(report), bool(report.metrics)),
        "kept": ("Units kept per group", lambda: plots.plot_kept_channels(report), bool(report.groups)),
        "scores": (
            "Score distributions",
            lambda: plots.plot_score_distributions(report),
            bool(plots.scored_groups(report)),
        ),
        "training": (
            "Training curve",
            lambda: plots.plot_training(report.history or [], language=report.language),
            plots.has_curves(report.history),
        ),
    }
    return {
        place: {"alt": say(report.language, alt), "data": _png(make())}
        for place, (alt, make, wanted) in makers.items()
        if wanted
    }


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    # Without the drawing program's version the same report gives the same bytes on every machine alike.
    figure.savefig(buffer, format="png", dpi=FIGURE_DPI, metadata={"Software": None})
    return base64.b64encode(buffer.getvalue()).decode("ascii")
