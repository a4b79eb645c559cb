"""The slides of experiments: all of them in a table, what one gains and costs, its training curve, untrained cuts.

Titles are made from the numbers that are shown: other numbers give another title.
"""

from __future__ import annotations

import math
import operator
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from cleanai.errors import InputError
from cleanai.evaluate import ModelMetrics
from cleanai.experiments.figures import measured_accuracies
from cleanai.experiments.results import FINETUNED, ORIGINAL, PRUNED, STAGE_NAMES, ExperimentResults
from cleanai.experiments.slides import (
    BEFORE,
    VALUE_SIZE,
    SlideFigure,
    before_handle,
    find_look,
    make_slide,
    share_legend,
    slide_style,
    slide_table,
    title_panel,
    write_text_at,
    write_value,
)
from cleanai.experiments.tables import method_label, overview_table, points, stage_labels, summarize, write_accuracy
from cleanai.plots import ORIGINAL as GREY
from cleanai.plots import TickFormatter, finish_axes
from cleanai.rendering import are_comparable
from cleanai.texts import local_number, percent, say, signed_percent, significant, terms, whole_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# ------------------------------------------------------------------------------------------------------- all of them


def slide_overview(experiments: Sequence[ExperimentResults], language: str = "en") -> SlideFigure:
    """All experiments and methods in one table (see `overview_table`)."""
    return slide_table(overview_table(experiments, language), _overview_finding(experiments, language))


def _overview_finding(experiments: Sequence[ExperimentResults], language: str) -> str:
    """The smallest loss of accuracy right after a cut, and the smallest after fine-tuning."""
    cut: list[tuple[float, str]] = []
    tuned: list[tuple[float, str]] = []
    for results in experiments:
        for method, result in results.methods.items():
            summary, name = summarize(result), f"{method_label(method, language)}, {results.config.scenario}"
            cut += [] if summary.pruning_drop is None else [(summary.pruning_drop, name)]
            tuned += [] if summary.final_drop is None else [(summary.final_drop, name)]
    phrases = {
        "Smallest loss without training: {loss} ({name})": cut,
        "Fine-tuned: {loss} ({name})": tuned,
    }
    found = [(phrase, *min(losses, key=operator.itemgetter(0))) for phrase, losses in phrases.items() if losses]
    return ". ".join(say(language, phrase, loss=points(loss, language), name=name) for phrase, loss, name in found)


def slide_untrained(experiments: Sequence[ExperimentResults], language: str = "en") -> SlideFigure:
    """Accuracy right after pruning, by experiment and method: what a cut costs when nothing repairs it.

    Raises `InputError` when none was measured.
    """
    shown = [results for results in experiments if measured_accuracies(results, PRUNED)]
    if not shown:
        raise InputError("slide_untrained: no pruned model was measured for accuracy.")
    methods = list(dict.fromkeys(method for each in shown for method in measured_accuracies(each, PRUNED)))
    with slide_style():
        foot = " ".join(_data_line(results, language) for results in shown)
        figure, [axes] = make_slide(_untrained_finding(shown, language), foot)
        for place, results in enumerate(shown):
            _draw_untrained(axes, place, results, 0.8 / len(methods), language)
        axes.set_xticks(range(len(shown)), [_experiment_tick(results, language) for results in shown])
        axes.set_ylim(0, 105)
        axes.set_ylabel(say(language, "accuracy (%)"))
        finish_axes(axes, grid="y")
        handles = _method_patches(methods, language)
        share_legend(figure, [*handles, before_handle(language)], columns=len(handles) + 1)
    return figure


def _draw_untrained(axes: Axes, place: int, results: ExperimentResults, width: float, language: str) -> None:
    found = measured_accuracies(results, PRUNED)
    for position, (method, value) in enumerate(found.items()):
        at = place + (position - (len(found) - 1) / 2) * width
        axes.bar(at, value, 0.9 * width, color=find_look(method)["color"])
        write_value(axes, at, value, language)
    before = _original_accuracy(results)
    if before is not None:
        axes.plot([place - 0.42, place + 0.42], [before, before], **BEFORE)
        write_value(axes, place, before, language)


def _untrained_finding(experiments: Sequence[ExperimentResults], language: str) -> str:
    """What the best method left in the experiment that lost most."""
    lost = []
    for results in experiments:
        best = max(measured_accuracies(results, PRUNED).values())
        before = _original_accuracy(results)
        lost.append((0.0 if before is None else before - best, best, results))
    drop, left, worst = max(lost, key=lambda each: each[0])
    return say(
        language,
        "Without training, {model} falls from {before} to {left} at best ({asked} removed)",
        model=_model_name(worst),
        before=percent((left + drop) / 100, language),
        left=percent(left / 100, language),
        asked=_asked(worst, language),
    )


def _experiment_tick(results: ExperimentResults, language: str) -> str:
    """Which experiment, which network, how much was removed: three lines under the bars."""
    scope = "global" if results.config.global_pruning else "local"
    share = percent(results.config.pruning_ratio, language, digits=0)
    return f"{results.config.scenario}\n{_model_name(results)}\n{share} {say(language, scope)}"


def _data_line(results: ExperimentResults, language: str) -> str:
    name, count = f"{results.config.scenario} ({results.data.name})", whole_number(results.data.test, language)
    return say(language, "{experiment}: accuracy in % on {samples} test images.", experiment=name, samples=count)


# ------------------------------------------------------------------------------------------------------- one of them


class _Quantity(NamedTuple):
    """What every model was measured in."""

    label: str
    number: Callable[[ModelMetrics], float | None]
    write: Callable[[float], str]


def slide_costs(results: ExperimentResults, language: str = "en") -> SlideFigure:
    """Accuracy, parameters, FLOPs and latency of the original and of each method's model after its last stage.

    The latency is left out unless all were timed alike and on a machine at rest. Raises `InputError` when the results
    hold no method.
    """
    finals = {method: _last_metrics(result.report.metrics) for method, result in results.methods.items()}
    if not finals:
        raise InputError(f"slide_costs: {results.name} holds no method.")
    first = next(iter(results.methods.values())).report.metrics[ORIGINAL]
    models = [first, *finals.values()]
    quantities = _quantities(models, language)
    handles = [Patch(color=GREY, label=say(language, "Original")), *_method_patches(list(finals), language)]
    with slide_style():
        finding = _costs_finding(results, first, finals, language)
        figure, panels = make_slide(finding, _costs_foot(results, quantities, language), len(quantities))
        for panel, quantity in zip(panels, quantities, strict=True):
            values = [quantity.number(metrics) or 0.0 for metrics in models]
            panel.bar(range(len(values)), values, 0.85, color=[handle.get_facecolor() for handle in handles])
            for place, value in enumerate(values):
                write_text_at(panel, place, value, quantity.write(value), size=VALUE_SIZE if len(values) < 4 else 12)
            title_panel(panel, quantity.label, size=17)
            panel.set_ylim(0, 1.08 * max(values))
            panel.set_xticks([])
            panel.set_yticks([])
            finish_axes(panel)
            panel.spines["left"].set_visible(False)
        share_legend(figure, handles, columns=len(handles))
    return figure


def _quantities(models: Sequence[ModelMetrics], language: str) -> list[_Quantity]:
    """Those in which all the models were measured, and can be compared."""

    def short(value: float) -> str:
        return significant(value, 3, language)

    def one_digit(value: float) -> str:
        return local_number(f"{value:.1f}", language)

    unit, letter = (1e6, "M") if models[0].parameters >= 1e6 else (1e3, "k")
    accuracy = [_Quantity(say(language, "Accuracy (%)"), lambda m: m.accuracy, one_digit)]
    latency = [
        _Quantity(say(language, "Inference time (ms)"), lambda m: m.latency.median_ms if m.latency else None, short)
    ]
    return [
        *(accuracy if all(metrics.accuracy is not None for metrics in models) else []),
        _Quantity(say(language, "Parameters ({unit})", unit=letter), lambda m: m.parameters / unit, short),
        _Quantity(say(language, "FLOPs ({unit})", unit="M"), lambda m: m.flops / 1e6, short),
        *(latency if are_comparable([metrics.latency for metrics in models]) else []),
    ]


def _costs_foot(results: ExperimentResults, quantities: Sequence[_Quantity], language: str) -> str:
    foot = _experiment_foot(results, language)
    if quantities[-1].label != say(language, "Inference time (ms)"):
        phrase = "No speed-up is given where times were not measured or cannot be compared."
        foot = f"{foot} {say(language, phrase)}"
    return foot


def _last_metrics(stages: Mapping[str, ModelMetrics]) -> ModelMetrics:
    return next(stages[stage] for stage in reversed(STAGE_NAMES) if stage in stages)


def _costs_finding(
    results: ExperimentResults, first: ModelMetrics, finals: Mapping[str, ModelMetrics], language: str
) -> str:
    """What the most accurate of the models saves, in FLOPs and in time, and what it loses."""
    method = max(finals, key=lambda name: finals[name].accuracy or 0.0)
    final = finals[method]
    parts = [f"{say(language, 'FLOPs')} {signed_percent(final.flops / first.flops - 1, language)}"]
    if first.latency and final.latency and are_comparable([first.latency, *(each.latency for each in finals.values())]):
        change = final.latency.median_ms / first.latency.median_ms - 1
        parts.append(say(language, "time {change}", change=signed_percent(change, language)))
    if first.accuracy is not None and final.accuracy is not None:
        values = {"before": write_accuracy(first, language), "after": write_accuracy(final, language)}
        parts.append(say(language, "accuracy {before} → {after}", **values))
    return f"{_model_name(results)}, {method_label(method, language)}: {', '.join(parts)}"


def slide_training(results: ExperimentResults, language: str = "en") -> SlideFigure:
    """How fine-tuning wins accuracy back: by epoch on the validation images, from stage to stage on the test images.

    Raises `InputError` when nothing was fine-tuned.
    """
    methods = [name for name, result in results.methods.items() if result.report.history]
    if not methods:
        raise InputError(f"slide_training: nothing was fine-tuned in {results.name}.")
    with slide_style():
        finding = _training_finding(results, methods, language)
        figure, [left, right] = make_slide(finding, _training_foot(results, language), 2)
        for method in methods:
            look = find_look(method)
            epochs = [each for each in results.methods[method].report.history or () if "val_accuracy" in each]
            left.plot([each["epoch"] for each in epochs], [each["val_accuracy"] for each in epochs], **look)
            stages = results.methods[method].report.metrics
            known = [stages[name].accuracy if name in stages else None for name in STAGE_NAMES]
            right.plot(range(len(known)), [math.nan if value is None else value for value in known], **look)
        _write_stages(right, results, methods, language)
        title_panel(left, say(language, "validation accuracy (%)"))
        left.set_xlabel(say(language, "epoch"))
        left.xaxis.set_major_locator(MaxNLocator(integer=True))
        title_panel(right, say(language, "test accuracy (%)"))
        labels = stage_labels(results, language)
        right.set_xticks(range(len(STAGE_NAMES)), [textwrap.fill(labels[stage], 16) for stage in STAGE_NAMES])
        right.set_xlim(-0.2, 2.4)
        right.set_ylim(0, 105)
        for panel in (left, right):
            panel.yaxis.set_major_formatter(TickFormatter(language))
            finish_axes(panel, grid="y")
        share_legend(
            figure, [Line2D([], [], label=method_label(name, language), **find_look(name)) for name in methods]
        )
    return figure


def _write_stages(axes: Axes, results: ExperimentResults, methods: Sequence[str], language: str) -> None:
    """The original's accuracy above its point, those right after pruning below theirs, the last ones beside theirs."""
    before = _original_accuracy(results)
    if before is not None:
        write_text_at(axes, 0, before, local_number(f"{before:.1f}", language), (0, 14))
    for stage, place in ((PRUNED, 1), (FINETUNED, 2)):
        found = {name: value for name, value in measured_accuracies(results, stage).items() if name in methods}
        for rank, value in enumerate(sorted(found.values())):
            shift = (0, -30) if place == 1 else (14, 22 * rank - 11 * len(found) + 2)
            write_text_at(axes, place, value, local_number(f"{value:.1f}", language), shift)


def _training_finding(results: ExperimentResults, methods: Sequence[str], language: str) -> str:
    best = max(methods, key=lambda name: measured_accuracies(results, FINETUNED).get(name, 0.0))
    result = results.methods[best]
    summary, epochs = summarize(result), len(result.report.history or ())
    phrase = "{epochs} epochs win back {recovery} of what {method} lost: {drop} below the original"
    if summary.final_drop is not None and summary.final_drop < 0:
        phrase = "{epochs} epochs win back {recovery} of what {method} lost: {drop} above the original"
    return say(
        language,
        phrase,
        epochs=epochs,
        recovery=percent(summary.recovery, language, digits=0),
        method=method_label(best, language),
        drop=points(None if summary.final_drop is None else abs(summary.final_drop), language),
    )


def _training_foot(results: ExperimentResults, language: str) -> str:
    """What it was measured on, and what the warnings of the experiment say of its images."""
    warnings = [f"{terms(language, warning)}." for warning in results.warnings]
    capitals = [warning[:1].upper() + warning[1:] for warning in warnings]
    return " ".join([_experiment_foot(results, language), *capitals])


_TARGETS = {
    "channels": "{share} of the channels",
    "params": "{share} of the parameters",
    "macs": "{share} of the MACs",
    "latency": "{share} of the latency",
}


def _asked(results: ExperimentResults, language: str) -> str:
    """The share that was to be removed, and of what."""
    share = percent(results.config.pruning_ratio, language, digits=0)
    return say(language, _TARGETS[results.config.target], share=share)


def _experiment_foot(results: ExperimentResults, language: str) -> str:
    """What an experiment was measured on."""
    config = results.config
    scope = "all layers ranked together (global)" if config.global_pruning else "layer by layer (local)"
    steps = say(language, "in {n} steps", n=config.iterative_steps)
    parts = [
        f"{_model_name(results)}, {results.data.name}",
        say(language, "{count} test images", count=whole_number(results.data.test, language)),
        _asked(results, language),
        say(language, scope),
        steps if config.iterative_steps > 1 else say(language, "in one step"),
    ]
    return ", ".join(parts) + "."


# ------------------------------------------------------------------------------------------------------------ shared


def _original_accuracy(results: ExperimentResults) -> float | None:
    return next(iter(measured_accuracies(results, ORIGINAL).values()), None)


def _method_patches(methods: Sequence[str], language: str) -> list[Patch]:
    return [Patch(color=find_look(method)["color"], label=method_label(method, language)) for method in methods]


def _model_name(results: ExperimentResults) -> str:
    """The network's name as the results spell it: TS1_ResNet20_CIFAR10 is of a ResNet20."""
    parts = results.name.split("_")
    return parts[1] if len(parts) > 2 else results.config.model
