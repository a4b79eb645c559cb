"""Everything measured that the READMEs show: results of demos and experiments, the tables made of them, the picture.

    python docs/refresh.py              # table and pictures from docs/results/
    python docs/refresh.py --measure    # run both demos first; the second needs CIFAR-10 (see data/README.md)

`tests/test_readme.py` holds the READMEs to what is made here.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from matplotlib.figure import Figure

from cleanai import Report
from cleanai.demo import run_demo
from cleanai.experiments import ExperimentResults
from cleanai.experiments.results import FINETUNED, ORIGINAL, PRUNED
from cleanai.experiments.tables import method_label, summarize, write_accuracy
from cleanai.plots import plot_kept_channels, plot_metrics
from cleanai.rendering import metrics_table
from cleanai.texts import percent, say, term, whole_number

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
IMAGES = ROOT / "docs" / "images"
README = {"en": ROOT / "README.md", "tr": ROOT / "README.tr.md"}
DEMOS = ("digits", "cifar10")
ROWS = ("Parameters", "MACs", "Latency", "Accuracy")
EXPERIMENTS = ROOT / "data" / "results" / "reports"
MARKED, MARKED_EXPERIMENTS = (
    re.compile(rf"(?<=<!-- {name}: python docs/refresh\.py -->\n\n).*?(?=\n<!-- end of {name} -->)", re.DOTALL)
    for name in ("results", "experiments")
)


def measure() -> None:
    """Runs both demos and keeps their reports."""
    for data in DEMOS:
        with tempfile.TemporaryDirectory() as folder:
            run_demo(data, output=folder).save(RESULTS / f"demo_{data}.json")


def load_result(data: str) -> Report:
    """The kept report of a demo."""
    return Report.load(RESULTS / f"demo_{data}.json")


def results_table(language: str) -> str:
    """The measured results of both demos as one Markdown table."""
    reports = [Report.from_dict({**load_result(data).to_dict(), "language": language}) for data in DEMOS]
    stages = [term(language, stage) for stage in reports[0].metrics]
    labels = [say(language, label) for label in ROWS]
    lines = [
        "| | " + " | ".join(f"{_name(report)}: {stages[0]} | {' | '.join(stages[1:])}" for report in reports) + " |"
    ]
    lines.append("| --- |" + " ---: |" * len(stages) * len(reports))
    for label in labels:
        cells = [label]
        for report in reports:
            row = next((row for row in metrics_table(report).rows if row[0] == label), None)
            cells += [row[1], *row[2::2]] if row is not None else ["—"] * len(stages)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def load_experiments() -> list[ExperimentResults]:
    """The kept results of all experiments, scenario by scenario."""
    configs = sorted(EXPERIMENTS.glob("TS*_config.json"))
    return [ExperimentResults.load(path.with_name(path.name.replace("_config", ""))) for path in configs]


def experiments_table(language: str) -> str:
    """One line for each method of each experiment."""
    heads = {
        "en": ("experiment", "method", "original", "pruned", "fine-tuned", "parameters", "FLOPs"),
        "tr": ("deney", "yöntem", "özgün", "budanmış", "ince ayarlı", "parametre", "FLOP"),
    }[language]
    lines = ["| " + " | ".join(heads) + " |", "| --- | --- |" + " ---: |" * 5]
    for results in load_experiments():
        link = f"[{results.name.replace('_', ' ')}](data/results/reports/{results.name}.pdf)"
        for method, result in results.methods.items():
            accuracies = [
                write_accuracy(result.report.metrics.get(stage), language) for stage in (ORIGINAL, PRUNED, FINETUNED)
            ]
            summary = summarize(result)
            removed = ["−" + percent(share, language) for share in (summary.parameters, summary.flops)]
            lines.append("| " + " | ".join([link, method_label(method, language), *accuracies, *removed]) + " |")
            link = ""
    return "\n".join(lines) + "\n"


def _name(report: Report) -> str:
    samples = whole_number(report.metrics["original"].samples or 0, report.language)
    images = {"en": "test images", "tr": "sınama görüntüsü"}[report.language]
    return f"**{report.model_name.replace('_', '-')}**, {samples} {images}"


def draw_picture(language: str) -> Path:
    """The picture of the READMEs: what ResNet-20 lost and kept, before and after, and group by group."""
    report = Report.from_dict({**load_result("cifar10").to_dict(), "language": language})
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    plot_metrics(report, ax=left)
    plot_kept_channels(report, ax=right)
    path = IMAGES / f"resnet20_cifar10_{language}.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return path


def main() -> None:
    if "--measure" in sys.argv[1:]:
        measure()
    for language, path in README.items():
        draw_picture(language)
        text = path.read_text(encoding="utf-8")
        text = MARKED.sub(lambda _, language=language: results_table(language), text)
        text = MARKED_EXPERIMENTS.sub(lambda _, language=language: experiments_table(language), text)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
