"""The tables of an experiment: its preparation, a method's stages, what it saved and cost, the methods side by side.

Numbers become text here once, so that no two forms of a document can differ. A stage that was not run, or a number
that was not measured, is a dash.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cleanai.errors import InputError
from cleanai.evaluate import ModelMetrics
from cleanai.experiments.config import STAGES, ExperimentConfig, stage_of
from cleanai.experiments.results import FINETUNED, ORIGINAL, PRUNED, STAGE_NAMES, ExperimentResults, MethodResult
from cleanai.rendering import Table, are_comparable, latency_text, measurement_notes
from cleanai.texts import MISSING, local_number, percent, say, signed, significant, term, whole_number

BEST = " †"
"""Follows the best value of a column."""

Number = Callable[[ModelMetrics], float | None]


# ------------------------------------------------------------------------------------------------------------- numbers


@dataclass(frozen=True)
class Summary:
    """What a method saved and what it cost; None is what was not measured.

    `parameters`, `size` and `flops` are the removed shares of the original; `speedup` is how many times as fast a call
    is; the drops are points of accuracy below the original, right after the cut and in the end; `recovery` is the
    share of the first drop that fine-tuning won back (above 1: more than was lost).
    """

    parameters: float | None
    size: float | None
    flops: float | None
    speedup: float | None
    pruning_drop: float | None
    recovery: float | None
    final_drop: float | None


def find_method(results: ExperimentResults, method: str) -> MethodResult:
    """The result of a method; raises `InputError` naming those that there are."""
    if method not in results.methods:
        known = ", ".join(results.methods) or "none"
        raise InputError(f"{results.name} holds no result of the method {method!r}. It holds: {known}.")
    return results.methods[method]


def summarize(result: MethodResult) -> Summary:
    """What a method saved and what it cost, from the measurements of its stages."""
    stages = result.report.metrics
    original, pruned, final = (stages.get(stage) for stage in (ORIGINAL, PRUNED, FINETUNED))
    smaller = final or pruned
    pruning_drop, final_drop = accuracy_drop(original, pruned), accuracy_drop(original, final)
    return Summary(
        parameters=_removed(original, smaller, lambda metrics: metrics.parameters),
        size=_removed(original, smaller, lambda metrics: metrics.size_mb),
        flops=_removed(original, smaller, lambda metrics: metrics.flops),
        speedup=_speedup(original, smaller),
        pruning_drop=pruning_drop,
        recovery=_recovery(pruning_drop, final_drop),
        final_drop=final_drop,
    )


def accuracy_drop(before: ModelMetrics | None, after: ModelMetrics | None) -> float | None:
    """How many points of accuracy were lost."""
    if before is None or after is None or before.accuracy is None or after.accuracy is None:
        return None
    return before.accuracy - after.accuracy


def _removed(before: ModelMetrics | None, after: ModelMetrics | None, number: Number) -> float | None:
    if before is None or after is None:
        return None
    first, last = number(before), number(after)
    return None if last is None or not first else 1 - last / first


def _speedup(before: ModelMetrics | None, after: ModelMetrics | None) -> float | None:
    """Nothing where the two calls were timed under different conditions, or the machine was disturbed."""
    latencies = [metrics.latency if metrics else None for metrics in (before, after)]
    first, last = latencies
    if first is None or last is None or not are_comparable(latencies) or not last.median_ms:
        return None
    return first.median_ms / last.median_ms


def _recovery(pruning_drop: float | None, final_drop: float | None) -> float | None:
    """Nothing where pruning cost no accuracy: there was nothing to win back."""
    if pruning_drop is None or final_drop is None or pruning_drop <= 0:
        return None
    return 1 - final_drop / pruning_drop


# ------------------------------------------------------------------------------------------------------------- wording


_METHODS = {
    "coverage": "neuron coverage",
    "adaptive_coverage": "adaptive neuron coverage",
    "wanda": "WANDA",
    "magnitude": "magnitude",
    "taylor": "Taylor",
    "random": "random",
}


def method_label(method: str, language: str) -> str:
    """A method's name in words; one without words of its own is shown as it is."""
    return say(language, _METHODS[method]) if method in _METHODS else method


def stage_labels(results: ExperimentResults, language: str) -> dict[str, str]:
    """The headings of the stages; an original that nobody fine-tuned is not called so."""
    trained = bool(results.preparation.history)
    return {
        ORIGINAL: say(language, "Original (FT)" if trained else "Original"),
        PRUNED: say(language, "After pruning"),
        FINETUNED: say(language, "After pruning + FT"),
    }


def label_stages(results: ExperimentResults, method: str, language: str) -> dict[str, ModelMetrics]:
    """The measurements of the stages that were run, under their headings."""
    found = find_method(results, method).report.metrics
    return {label: found[stage] for stage, label in stage_labels(results, language).items() if stage in found}


def points(value: float | None, language: str) -> str:
    """Points of accuracy; a loss is positive and needs no sign."""
    if value is None:
        return MISSING
    return say(language, "{value} points", value=signed(value, 2, language).removeprefix("+"))


def times(value: float | None, language: str) -> str:
    """A speed-up: 1.42×."""
    return MISSING if value is None else f"{significant(value, 3, language)}×"


def write_accuracy(metrics: ModelMetrics | None, language: str) -> str:
    """An accuracy with two decimals and its percent sign."""
    return MISSING if metrics is None or metrics.accuracy is None else percent(metrics.accuracy / 100, language, 2)


def _accuracy_number(metrics: ModelMetrics, language: str) -> str:
    return MISSING if metrics.accuracy is None else local_number(f"{metrics.accuracy:.2f}", language)


def _loss_number(metrics: ModelMetrics, language: str) -> str:
    return MISSING if metrics.loss is None else significant(metrics.loss, 4, language)


@dataclass(frozen=True)
class _Unit:
    """A power of ten and its letter."""

    factor: float
    letter: str

    def write(self, value: float, language: str) -> str:
        return significant(value / self.factor, 4, language)


_UNITS = (_Unit(1e9, "G"), _Unit(1e6, "M"), _Unit(1e3, "k"))


def _unit_for(value: float, usual: str) -> _Unit:
    """The usual unit, or the first smaller one in which the value is not below a hundredth."""
    letters = [unit.letter for unit in _UNITS]
    usable = _UNITS[letters.index(usual) :]
    return next((unit for unit in usable if value >= unit.factor / 100), usable[-1])


# -------------------------------------------------------------------------------------------------------------- tables


def preparation_table(results: ExperimentResults, language: str) -> Table:
    """The original model before and after it was fitted to the data; one column where it was not trained."""
    preparation = results.preparation
    states = {say(language, "Original"): preparation.after}
    if preparation.history:
        before, after = say(language, "Before fine-tuning"), say(language, "After fine-tuning")
        states = {before: preparation.before, after: preparation.after}
    unit = _unit_for(preparation.after.metrics.parameters, "M")
    rows = (
        (say(language, "Accuracy (%)"), *(_accuracy_number(s.metrics, language) for s in states.values())),
        (say(language, "Loss"), *(_loss_number(s.metrics, language) for s in states.values())),
        (
            say(language, "Parameters ({unit})", unit=unit.letter),
            *(unit.write(s.metrics.parameters, language) for s in states.values()),
        ),
        (
            say(language, "Trainable parameters ({unit})", unit=unit.letter),
            *(unit.write(s.trainable, language) for s in states.values()),
        ),
    )
    columns = (say(language, "quantity"), *states)
    untimed = {label: dataclasses.replace(state.metrics, latency=None) for label, state in states.items()}
    notes = measurement_notes(untimed, language)
    title = say(language, "The original model")
    if preparation.history:
        title = say(language, "The original model before and after its fine-tuning")
    return Table(title, columns, rows, "l" + "r" * len(states), tuple(notes))


def comparison_table(results: ExperimentResults, method: str, language: str = "en") -> Table:
    """Original, pruned, and pruned and fine-tuned: accuracy, size, parameters, FLOPs and time of one call.

    Args:
        results: of `run_experiment` or `load_results`.
        method: one of ``results.methods``.
        language: "en" or "tr".

    Raises:
        InputError: the method has no result.

    Example:
        From the results that the repository holds:

        >>> from cleanai.experiments import load_results
        >>> results = load_results()["TS1_ResNet20_CIFAR10"]
        >>> comparison_table(results, "wanda").rows[0]
        ('Accuracy (%)', '91.73', '25.50', '89.32')
    """
    stages = find_method(results, method).report.metrics
    labels = stage_labels(results, language)
    measured = [stages.get(stage) for stage in labels]
    first = next(metrics for metrics in measured if metrics is not None)
    parameters, flops = _unit_for(first.parameters, "M"), _unit_for(first.flops, "G")

    def row(label: str, write: Callable[[ModelMetrics], str]) -> tuple[str, ...]:
        return (label, *(MISSING if metrics is None else write(metrics) for metrics in measured))

    rows = (
        row(say(language, "Accuracy (%)"), lambda m: _accuracy_number(m, language)),
        row(say(language, "Size (MB)"), lambda m: significant(m.size_mb, 4, language)),
        row(
            say(language, "Parameters ({unit})", unit=parameters.letter),
            lambda m: parameters.write(m.parameters, language),
        ),
        row(say(language, "FLOPs ({unit})", unit=flops.letter), lambda m: flops.write(m.flops, language)),
        row(say(language, "Inference time (ms)"), lambda m: latency_text(m.latency, language, unit="")),
    )
    title = say(language, "Comparison of the stages: {method}", method=method_label(method, language))
    notes = [
        say(language, "FT: fine-tuning. MB = 10^6 bytes; FLOPs = 2 × MACs of one call on the example inputs."),
        *measurement_notes(label_stages(results, method, language), language),
    ]
    return Table(title, (say(language, "quantity"), *labels.values()), rows, "lrrr", tuple(notes))


def summary_table(results: ExperimentResults, method: str, language: str) -> Table:
    """What the method saved and what it cost, in shares of the original and points of accuracy."""
    summary = summarize(find_method(results, method))
    rows = (
        (say(language, "Parameter reduction"), percent(summary.parameters, language)),
        (say(language, "Size reduction"), percent(summary.size, language)),
        (say(language, "FLOPs reduction"), percent(summary.flops, language)),
        (say(language, "Speed-up"), times(summary.speedup, language)),
        (say(language, "Accuracy lost by pruning"), points(summary.pruning_drop, language)),
        (say(language, "Recovery by fine-tuning"), percent(summary.recovery, language)),
        (say(language, "Final drop in accuracy"), points(summary.final_drop, language)),
    )
    notes = [say(language, "Recovery: the share of the accuracy lost by pruning that fine-tuning won back.")]
    notes += _drop_notes([summary], language)
    title = say(language, "Savings and costs: {method}", method=method_label(method, language))
    return Table(title, (say(language, "quantity"), say(language, "value")), rows, "lr", tuple(notes))


def _drop_notes(summaries: Sequence[Summary], language: str) -> list[str]:
    drops = [drop for summary in summaries for drop in (summary.pruning_drop, summary.final_drop) if drop is not None]
    return [say(language, "A negative drop is a gain.")] if any(drop < 0 for drop in drops) else []


@dataclass(frozen=True)
class _Column:
    """One metric of the methods: its heading, each method's number and text, and whether more of it is better."""

    head: str
    numbers: list[float | None]
    texts: list[str]
    better: int  # 1: more, -1: less, 0: the same model for all
    spreads: Sequence[float] = ()  # what a number is uncertain by, where that is known


def methods_table(results: ExperimentResults, language: str = "en") -> Table:
    """One row per method and one column per metric; the best of a column is marked where methods differ in it.

    Args:
        results: of `run_experiment` or `load_results`.
        language: "en" or "tr".

    Example:
        From the results that the repository holds:

        >>> from cleanai.experiments import load_results
        >>> results = load_results()["TS1_ResNet20_CIFAR10"]
        >>> [row[:4] for row in methods_table(results).rows]
        [('neuron coverage', '91.73', '48.39 †', '88.58'), ('WANDA', '91.73', '25.50', '89.32 †')]
    """
    columns = _method_columns(results, language)
    marked = [_mark_best(column) for column in columns]
    rows = tuple(
        (method_label(method, language), *(texts[position] for texts in marked))
        for position, method in enumerate(results.methods)
    )
    notes = []
    if any(text.endswith(BEST) for row in rows for text in row):
        notes.append(say(language, "†: the best value of the column."))
    notes.append(say(language, "FT: fine-tuning. Reductions and speed-up against the original; accuracies in %."))
    summaries = [summarize(result) for result in results.methods.values()]
    notes += _drop_notes(summaries, language)
    if any(summary.speedup is None for summary in summaries):
        phrase = "No speed-up is given where times were not measured or cannot be compared."
        notes.append(say(language, phrase))
    heads = (say(language, "method"), *(column.head for column in columns))
    return Table(say(language, "The methods compared"), heads, rows, "l" + "r" * len(columns), tuple(notes))


def _method_columns(results: ExperimentResults, language: str) -> list[_Column]:
    found = list(results.methods.values())
    summaries = [summarize(result) for result in found]

    def accuracy(stage: str, head: str, better: int) -> _Column:
        measured = [result.report.metrics.get(stage) for result in found]
        numbers = [metrics.accuracy if metrics else None for metrics in measured]
        return _Column(
            head, numbers, [MISSING if m is None else _accuracy_number(m, language) for m in measured], better
        )

    def saving(head: str, name: str, write: Callable[..., str], better: int = 1) -> _Column:
        numbers = [getattr(summary, name) for summary in summaries]
        return _Column(say(language, head), numbers, [write(number, language) for number in numbers], better)

    labels = stage_labels(results, language)
    return [
        *(accuracy(stage, label, 0 if stage == ORIGINAL else 1) for stage, label in labels.items()),
        saving("Parameter reduction", "parameters", percent),
        saving("Size reduction", "size", percent),
        saving("FLOPs reduction", "flops", percent),
        dataclasses.replace(saving("Speed-up", "speedup", times), spreads=[_speedup_spread(each) for each in found]),
        saving("Final drop (points)", "final_drop", _bare_points, better=-1),
    ]


def _bare_points(value: float | None, language: str) -> str:
    return MISSING if value is None else signed(value, 2, language).removeprefix("+")


def _mark_best(column: _Column) -> list[str]:
    """The texts, the best one marked and those that cannot be told from it; nothing is best where none can be told."""
    known = [column.better * number for number in column.numbers if number is not None]
    if not column.better or not known:
        return column.texts
    best = column.numbers.index(column.better * max(known))
    spreads = column.spreads or [0.0] * len(column.texts)
    alike = [
        number is not None
        and (text == column.texts[best] or abs(number - column.better * max(known)) <= spread + spreads[best])
        for number, text, spread in zip(column.numbers, column.texts, spreads, strict=True)
    ]
    if sum(alike) == len(known):
        return column.texts
    return [text + BEST if found else text for text, found in zip(column.texts, alike, strict=True)]


def _speedup_spread(result: MethodResult) -> float:
    """How far a speed-up may be off: by the spread of the two times that it is made of."""
    stages = result.report.metrics
    speedup = summarize(result).speedup
    smaller = stages.get(FINETUNED) or stages.get(PRUNED)
    timed = [metrics.latency for metrics in (stages.get(ORIGINAL), smaller) if metrics and metrics.latency]
    return 0.0 if speedup is None else speedup * sum(latency.iqr_ms / latency.median_ms for latency in timed)


# ------------------------------------------------------------------------------------------ several experiments, groups


def overview_table(experiments: Sequence[ExperimentResults], language: str = "en") -> Table:
    """One row per method of each experiment: its accuracy in every stage, and what it saved.

    Args:
        experiments: results of `run_experiment` or `load_results`.
        language: "en" or "tr".

    Example:
        From the results that the repository holds:

        >>> from cleanai.experiments import load_results
        >>> results = load_results()["TS1_ResNet20_CIFAR10"]
        >>> [row[2:6] for row in overview_table([results]).rows]
        [('neuron coverage', '91.73', '48.39', '88.58'), ('WANDA', '91.73', '25.50', '89.32')]
    """
    rows = []
    for results in experiments:
        name = results.name.replace("_", " ")
        for method, result in results.methods.items():
            stages, summary = result.report.metrics, summarize(result)
            accuracies = [_stage_accuracy(stages.get(stage), language) for stage in STAGE_NAMES]
            savings = [percent(share, language) for share in (summary.parameters, summary.flops)]
            rows.append((name, asked_ratio(results, language), method_label(method, language), *accuracies, *savings))
            name = ""
    heads = ("experiment", "ratio", "method", "Original", "After pruning", "After pruning + FT")
    columns = tuple(say(language, head) for head in (*heads, "Parameter reduction", "FLOPs reduction"))
    phrase = "{experiment}: accuracy in % on {samples} test images."
    said = (
        say(language, phrase, experiment=each.name.replace("_", " "), samples=whole_number(each.data.test, language))
        for each in experiments
    )
    notes = list(dict.fromkeys(said))
    notes.append(say(language, "Local: this share of every group; global: all channels ranked together."))
    return Table(say(language, "The experiments compared"), columns, tuple(rows), "lrlrrrrr", tuple(notes))


def asked_ratio(results: ExperimentResults, language: str) -> str:
    """The pruning ratio with what was ranked together, and the repair if there was one, in few words."""
    scope = "global" if results.config.global_pruning else "local"
    words = f"{percent(results.config.pruning_ratio, language)} {say(language, scope)}"
    repair = _REPAIRS.get(results.config.recover)
    return f"{words}, {say(language, repair)}" if repair else words


_REPAIRS = {"batchnorm": "BatchNorm anew", "bias": "mean outputs restored", "least_squares": "least squares"}


def _stage_accuracy(metrics: ModelMetrics | None, language: str) -> str:
    return MISSING if metrics is None else _accuracy_number(metrics, language)


def agreement_table(results: ExperimentResults, first: str, second: str, language: str = "en") -> Table:
    """How many channels both of two methods removed, group by group, beside what two blind choices would share.

    Two random choices of a and b among n channels share a b / n on average.

    Args:
        results: of `run_experiment` or `load_results`.
        first: one of ``results.methods``.
        second: another one.
        language: "en" or "tr".

    Raises:
        InputError: a method has no result.

    Example:
        From the results that the repository holds:

        >>> from cleanai.experiments import load_results
        >>> results = load_results()["TS1_ResNet20_CIFAR10"]
        >>> agreement_table(results, "coverage", "wanda").rows[0]
        ('conv1', '16', '3', '3', '1', '0.6')
    """
    removed = [
        {group.name: set(group.removed) for group in find_method(results, method).report.groups}
        for method in (first, second)
    ]
    rows, shared, chance, all_removed = [], 0, 0.0, 0
    for group in find_method(results, first).report.groups:
        one, other = removed[0][group.name], removed[1].get(group.name, set())
        expected = len(one) * len(other) / group.units_before
        shared, chance, all_removed = shared + len(one & other), chance + expected, all_removed + len(one)
        numbers = (group.units_before, len(one), len(other), len(one & other))
        rows.append((group.name, *(whole_number(n, language) for n in numbers), _one_digit(expected, language)))
    labels = [method_label(method, language) for method in (first, second)]
    heads = [say(language, "removed by {method}", method=label) for label in labels]
    columns = ("group", "channels", "removed by both", "expected by chance")
    group_head, channels, both, by_chance = (say(language, head) for head in columns)
    title = say(
        language,
        "{first} and {second} chose {shared} of {removed} channels alike; blind choices would share {chance}",
        first=labels[0],
        second=labels[1],
        shared=whole_number(shared, language),
        removed=whole_number(all_removed, language),
        chance=_one_digit(chance, language),
    )
    return Table(title, (group_head, channels, *heads, both, by_chance), tuple(rows), "lrrrrr")


def _one_digit(value: float, language: str) -> str:
    return local_number(f"{value:.1f}", language)


# ------------------------------------------------------------------------------------------------------------ settings


_STAGE_HEADS = {
    "prepare": "Settings: model, data and training",
    "prune": "Settings: scores and pruning",
    "finetune": "Settings: fine-tuning after pruning",
    "report": "Settings: methods and measurements",
    "machine": "Settings: machine (they change no result)",
}

SETTING_NAMES = {
    "scenario": "scenario",
    "profile": "profile",
    "model": "model",
    "data": "data set",
    "weights": "first weights",
    "train_images": "training images",
    "validation_images": "validation images",
    "test_images": "test images",
    "seed": "seed",
    "prepare_epochs": "epochs of the preparation",
    "prepare_lr": "learning rate of the preparation",
    "batch_size": "batch size",
    "optimizer": "optimiser",
    "momentum": "momentum",
    "weight_decay": "weight decay",
    "scheduler": "learning rate schedule",
    "warmup_epochs": "warm-up epochs",
    "label_smoothing": "label smoothing",
    "clip_norm": "largest gradient norm",
    "accumulate": "batches per step",
    "precision": "number precision",
    "patience": "patience of early stopping",
    "keep": "weights kept at the end",
    "methods": "methods",
    "pruning_ratio": "pruning ratio",
    "target": "what the ratio is of",
    "global_pruning": "all layers ranked together",
    "isomorphic": "layers of one structure ranked together",
    "iterative_steps": "steps",
    "schedule": "schedule of the steps",
    "metric": "metric of coverage",
    "threshold": "threshold of coverage",
    "calibration_batches": "calibration batches",
    "calibration_batch_size": "calibration batch size",
    "calibration_source": "source of the calibration images",
    "max_pruning_ratio": "highest ratio of a group",
    "min_channels": "fewest channels of a group",
    "round_to": "kept channels are a multiple of",
    "ignored_layers": "untouched layers",
    "recover": "repair without training",
    "finetune_epochs": "epochs of fine-tuning",
    "finetune_lr": "learning rate of fine-tuning",
    "distillation_weight": "weight of distillation",
    "distillation_temperature": "temperature of distillation",
    "max_batches": "evaluation batches",
    "latency_batch_size": "batch size of the timed call",
    "latency_seconds": "seconds of timing",
    "checkpoint_interval": "epochs between checkpoints",
    "state_minutes": "minutes between saved states",
    "device": "device",
    "workers": "loading processes",
    "language": "language",
}


def settings_tables(config: ExperimentConfig, language: str = "en") -> list[Table]:
    """All settings, one table per stage: in words, as ``--set`` names them, and their values as it takes them.

    Args:
        config: the settings.
        language: "en" or "tr".

    Example:
        >>> from cleanai.experiments import make_config
        >>> settings_tables(make_config("TS1"))[1].rows[0]
        ('pruning ratio', 'pruning_ratio', '0.2')
    """
    columns = tuple(say(language, head) for head in ("setting", "name for --set", "value"))
    tables = []
    for stage in (*STAGES, "machine"):
        rows = tuple(
            (_setting_name(name, language), name, _setting_value(value))
            for name, value in config.to_dict().items()
            if stage_of(name) == stage
        )
        tables.append(Table(say(language, _STAGE_HEADS[stage]), columns, rows, "lll"))
    return tables


def _setting_name(name: str, language: str) -> str:
    if name in SETTING_NAMES:
        return say(language, SETTING_NAMES[name])
    return term(language, name.replace("_", " "))


def _setting_value(value: object) -> str:
    """A value as a command line takes it."""
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
