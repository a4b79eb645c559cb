"""The table of `docs/guide/performance.md` and its twin: what the steps cost, of the results of `benchmarks.zoo`.

    python -m benchmarks.zoo --suite torchvision timm transformers --output docs/results/zoo.json
    python -m benchmarks.performance_page

`tests/test_documents.py` holds the pages to the results.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.zoo_page import RESULTS, SUITES
from cleanai.texts import scaled, short_number, whole_number

GUIDE = Path(__file__).parent.parent / "docs" / "guide"
PAGES = {"en": GUIDE / "performance.md", "tr": GUIDE / "tr" / "performance.md"}
MARKED = re.compile(
    r"(?<=<!-- performance: python -m benchmarks\.performance_page -->\n\n).*?(?=\n<!-- end of)", re.DOTALL
)
SHOWN = ("resnet18", "resnet50", "densenet201", "efficientnet_b0", "vit_b_16", "swin_t")
MOST = 0.9
Row = dict[str, Any]

STEPS: dict[str, Callable[[Row], float]] = {
    "forward": lambda row: row["forward_s"],
    "trace": lambda row: row["trace_s"],
    "couple": lambda row: row["coupling_s"],
    "trial": lambda row: row["fitting_s"],
    "plan": lambda row: row["settings"]["local 0.3"]["plan_s"],
    "slice": lambda row: row["slicing_s"],
    "proof": lambda row: row["settings"]["local 0.3"]["proof_s"],
}
TEXTS = {
    "en": {
        "network": "network",
        "parameters": "parameters",
        "operations": "operations",
        "forward": "one forward",
        "trace": "trace",
        "couple": "couple",
        "trial": "trial cuts",
        "plan": "score and plan",
        "slice": "slice",
        "proof": "proof",
        "median": "{suite}: median of {count}",
        "most": "{suite}: 9 of 10 are below",
        "seconds": "{value} s",
    },
    "tr": {
        "network": "ağ",
        "parameters": "parametre",
        "operations": "işlem",
        "forward": "bir ileri geçiş",
        "trace": "izleme",
        "couple": "eşleme",
        "trial": "deneme kesimleri",
        "plan": "puan ve plan",
        "slice": "dilimleme",
        "proof": "kanıt",
        "median": "{suite}: {count} ağın medyanı",
        "most": "{suite}: 10 ağdan 9'u bunun altında",
        "seconds": "{value} sn",
    },
}


def make_table(language: str) -> str:
    """Seconds of every step: some networks of torchvision, then the middle and the upper end of each library."""
    texts = TEXTS[language]
    rows = list_rows(json.loads(RESULTS.read_text(encoding="utf-8"))["rows"])
    titles = [texts[name] for name in ("network", "parameters", "operations", *STEPS)]
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    known = {(row["suite"], row["name"]): row for row in rows}
    lines += [_line(f"`{name}`", [known["torchvision", name]], statistics.median, language) for name in SHOWN]
    for suite in SUITES:
        found = [row for row in rows if row["suite"] == suite]
        lines.append(_line(texts["median"].format(suite=suite, count=len(found)), found, statistics.median, language))
        lines.append(_line(texts["most"].format(suite=suite), found, find_upper, language))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def list_rows(rows: dict[str, Row]) -> list[Row]:
    """The networks that were proven, whose steps were all timed."""
    return [row for row in rows.values() if row["status"] == "verified" and "trace_s" in row]


def find_upper(values: Sequence[float]) -> float:
    """The value below which nine of ten lie.

    Example:
        >>> find_upper(range(11))
        9
    """
    return sorted(values)[round(MOST * (len(values) - 1))]


def _line(title: str, rows: Sequence[Row], pick: Callable[[list[float]], float], language: str) -> list[str]:
    sizes = [
        scaled(round(pick([row["parameters"] for row in rows])), language),
        whole_number(round(pick([row["operations"] for row in rows])), language),
    ]
    seconds = [pick([step(row) for row in rows]) for step in STEPS.values()]
    unit = TEXTS[language]["seconds"]
    return [title, *sizes, *(unit.format(value=short_number(float(f"{each:.2g}"), language)) for each in seconds)]


def main() -> None:
    """Writes the table into both pages."""
    for language, path in PAGES.items():
        text = path.read_text(encoding="utf-8")
        path.write_text(MARKED.sub(lambda _, language=language: make_table(language), text), encoding="utf-8")


if __name__ == "__main__":
    main()
