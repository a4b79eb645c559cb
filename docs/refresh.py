"""Everything measured that the READMEs and the guide show: results of demos and experiments, the tables made of them,
the picture.

    python docs/refresh.py              # tables and pictures from docs/results/ and data/results/
    python docs/refresh.py --measure    # run both demos first; the second needs CIFAR-10 (see data/README.md)

A table stands between ``<!-- NAME: command -->`` and ``<!-- end of NAME -->``. `tests/test_documents.py` holds the
documents to what is made here.
"""

from __future__ import annotations

import ast
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from cleanai import Report
from cleanai.demo import run_demo
from cleanai.experiments import ExperimentResults, load_results
from cleanai.experiments.results import FINETUNED, ORIGINAL, PRUNED
from cleanai.experiments.tables import method_label, summarize, write_accuracy
from cleanai.plots import plot_kept_channels, plot_metrics
from cleanai.rendering import metrics_table
from cleanai.texts import percent, say, term, whole_number

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # for benchmarks, whose results are shown, and the order of the files

from layout import INSIDE, ORDER  # noqa: E402

from benchmarks import peers_page, performance_page  # noqa: E402

RESULTS = ROOT / "docs" / "results"
IMAGES = ROOT / "docs" / "images"
GUIDE = ROOT / "docs" / "guide"
DOCUMENTS = {
    "en": [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(GUIDE.glob("*.md"))],
    "tr": [ROOT / "README.tr.md", *sorted((GUIDE / "tr").glob("*.md"))],
}
DEMOS = ("digits", "cifar10")
ROWS = ("Parameters", "MACs", "Latency", "Accuracy")
EXPERIMENTS = ROOT / "data" / "results" / "reports"
MARKED = re.compile(
    r"(?P<before><!-- (?P<name>\w+): [^\n]+ -->\n\n).*?(?P<after>\n<!-- end of (?P=name) -->)", re.DOTALL
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
    return list(load_results(EXPERIMENTS).values())


def experiments_table(language: str) -> str:
    """One line for each method of each experiment."""
    heads = {
        "en": ("experiment", "method", "original", "pruned", "fine-tuned", "parameters", "FLOPs"),
        "tr": ("deney", "yöntem", "özgün", "budanmış", "ince ayarlı", "parametre", "FLOP"),
    }[language]
    lines = ["| " + " | ".join(heads) + " |", "| --- | --- |" + " ---: |" * 5]
    up = {"en": "../../", "tr": "../../../"}[language]  # from docs/guide and docs/guide/tr
    for results in load_experiments():
        link = f"[{results.name.replace('_', ' ')}]({up}data/results/reports/{results.name}.pdf)"
        for method, result in results.methods.items():
            accuracies = [
                write_accuracy(result.report.metrics.get(stage), language) for stage in (ORIGINAL, PRUNED, FINETUNED)
            ]
            summary = summarize(result)
            removed = ["−" + percent(share, language) for share in (summary.parameters, summary.flops)]
            lines.append("| " + " | ".join([link, method_label(method, language), *accuracies, *removed]) + " |")
            link = ""
    return "\n".join(lines) + "\n"


def layout_table(language: str) -> str:
    """One line for each file of the package, in the order of imports: the first of its docstring."""
    assert language == "en", "CONTRIBUTING.md is in English"
    package = ROOT / "cleanai"
    lines = ["| file in `cleanai/` | what is in it |", "| --- | --- |"]
    for name in ORDER:
        inside = [package / name / f"{part}.py" for part in ("__init__", *INSIDE[name][:-1])] if name in INSIDE else []
        for path in inside or [package / f"{name}.py"]:
            said = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
            words = " ".join(said.split()).replace("``", "`")
            lines.append(f"| `{path.relative_to(package).as_posix()}` | {words} |")
    return "\n".join(lines) + "\n"


def _name(report: Report) -> str:
    samples = whole_number(report.metrics["original"].samples or 0, report.language)
    images = {"en": "test images", "tr": "sınama görüntüsü"}[report.language]
    return f"**{report.model_name.replace('_', '-')}**, {samples} {images}"


FLOW = (  # stage, what it gives, the module that does it
    ("trace", "operations with\nshapes and parameters", "trace"),
    ("couple", "groups of channels\nthat go together", "fields, rules, coupling"),
    ("calibrate", "sums per channel,\nno activations kept", "calibration, gradients"),
    ("score", "one number per unit,\nhigher = keep", "importance"),
    ("select", "units that go,\nbudget met", "select, cost"),
    ("plan", "inert data: prints,\nsaves, replays", "plan"),
    ("slice", "a smaller model", "slicing, fitting"),
    ("verify", "proof: equal to the\nmasked original", "masking, verify"),
    ("recover", "weights repaired\nwithout labels", "recover"),
    ("report", "tables, figures,\nreasons", "evaluate, report"),
)


def draw_flow() -> Path:
    """The picture of the architecture page: the pipeline, what each stage gives, and where it lives."""
    figure = Figure(figsize=(13, 4.6))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 5), ylim=(0, 2))
    ax.axis("off")
    for position, (stage, gives, modules) in enumerate(FLOW):
        row, column = divmod(position, 5)
        x, y = column + 0.5, 1.5 - row
        ax.add_patch(
            FancyBboxPatch(
                (x - 0.38, y - 0.33), 0.76, 0.66, "round,pad=0,rounding_size=0.06", fc="#eef3fa", ec="#4c72b0"
            )
        )
        ax.text(x, y + 0.17, stage, ha="center", va="center", fontsize=14, weight="bold")
        ax.text(x, y - 0.05, gives, ha="center", va="center", fontsize=10.5)
        ax.text(x, y - 0.25, modules, ha="center", va="center", fontsize=9, color="#555555", family="monospace")
        if position and column:
            ax.annotate(
                "", (x - 0.385, y), (x - 0.615, y), arrowprops={"arrowstyle": "-|>", "color": "#4c72b0", "lw": 1.8}
            )
    turn = {
        "arrowstyle": "-|>",
        "color": "#4c72b0",
        "lw": 1.8,
        "connectionstyle": "arc,angleA=-90,angleB=90,armA=26,armB=26,rad=6",
    }
    ax.annotate("", (0.5, 0.84), (4.5, 1.16), arrowprops=turn)
    path = IMAGES / "data_flow.svg"
    with matplotlib.rc_context({"svg.hashsalt": "data flow"}):
        figure.savefig(path, metadata={"Date": None})
    return path


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


MAKERS: dict[str, Callable[[str], str]] = {
    "results": results_table,
    "experiments": experiments_table,
    "peers": lambda language: peers_page.readme_table(language) + "\n",
    "performance": performance_page.make_table,
    "layout": layout_table,
}


def fill(text: str, language: str) -> str:
    """A document with its tables made anew."""
    return MARKED.sub(lambda found: found["before"] + MAKERS[found["name"]](language) + found["after"], text)


def main() -> None:
    """The command."""
    if "--measure" in sys.argv[1:]:
        measure()
    draw_flow()
    for language, paths in DOCUMENTS.items():
        draw_picture(language)
        for path in paths:
            path.write_text(fill(path.read_text(encoding="utf-8"), language), encoding="utf-8")


if __name__ == "__main__":
    main()
