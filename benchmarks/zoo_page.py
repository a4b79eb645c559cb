"""The pages `docs/zoo.md` and `docs/zoo.tr.md`: what was pruned, what was proven, what stays whole, and why.

    python -m benchmarks.zoo --suite torchvision timm transformers --output docs/results/zoo.json
    python -m benchmarks.zoo_saved --output docs/results/zoo_saved.json
    python -m benchmarks.zoo_page

`tests/test_zoo.py` holds the pages to the results.
"""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cleanai.texts import percent, scaled, short_number, term, whole_number

DOCS = Path(__file__).parent.parent / "docs"
RESULTS = DOCS / "results" / "zoo.json"
SAVED = DOCS / "results" / "zoo_saved.json"
PAGES = {"en": DOCS / "zoo.md", "tr": DOCS / "zoo.tr.md"}
SUITES = ("torchvision", "timm", "transformers")
MOST_REASONS = 3
# True of every network: the page says it once.
OBVIOUS = re.compile(r"the output of the model|\w+ in \S+ reads the input of the model|cut along another axis.*")

TEXTS = {
    "en": {
        "title": "Which networks CleanAI prunes",
        "other": "[Türkçe](zoo.tr.md)",
        "intro": (
            "Whole libraries of networks, with random weights and small inputs, pruned by 30 % of the channels of "
            "every group; {three} of the {count} also by 65 %, and by 50 % of all channels ranked together. *Proven* "
            "means that in every setting that was tried the pruned network equals the original with the removed "
            "channels masked, in double precision. Other work ran on the machine meanwhile, so the times are upper "
            "bounds, and against a forward on inputs as small as these the analysis looks expensive. This page is "
            "made from [results/zoo.json](results/zoo.json) by `python -m benchmarks.zoo_page`; to measure anew: "
            "`python -m benchmarks.zoo --help`."
        ),
        "saved": (
            "{same} of {count} networks that were drawn at random gave bit-identical outputs after they had been "
            "pruned, saved with `save_pruned` and loaded with `load_pruned` in a new process "
            "([results/zoo_saved.json](results/zoo_saved.json), {date}; `{command}`)."
        ),
        "measured": "Measured on {date} with one thread for each network on {machine}; {versions}.",
        "columns": (
            "- **prunable**: the share of the parameters that lie in tensors of which something can be removed;\n"
            "- **kept**: what is left of the parameters and of the multiply-accumulates when 30 % of the channels of "
            "every group are removed;\n"
            "- **analysis**: seconds until the groups are known: tracing, coupling and trial cuts;\n"
            "- **stays whole**: the three reasons that hold the most channels, each with their number. `*` stands for "
            "different numbers. That the outputs of a network and the channels of its input stay is not repeated."
        ),
        "summary": "Summary",
        "suite": "library",
        "networks": "networks",
        "network": "network",
        "result": "result",
        "parameters": "parameters",
        "prunable": "prunable",
        "kept": "kept: parameters / MACs",
        "analysis": "analysis",
        "whole": "stays whole, and why (channels)",
        "mean": "prunable, mean",
        "multiple": "trace + coupling / one forward, median",
        "slicing": "slicing / cloning, median",
        "more": "reasons not shown: {count}",
        "seconds": "{value} s",
    },
    "tr": {
        "title": "CleanAI hangi ağları buduyor",
        "other": "[English](zoo.md)",
        "intro": (
            "Rastgele ağırlıklı, küçük girdili bütün bir kütüphane dolusu ağ, her grubun kanallarının %30'u budanarak; "
            "{count} ağın {three} tanesi ayrıca %65 ile ve birlikte sıralanan bütün kanalların %50'siyle. "
            "*Kanıtlandı*, denenen her ayarda budanan ağın, çıkarılan kanalları maskelenmiş özgün ağa çift duyarlıkta "
            "eşit olduğu anlamına gelir. Ölçüm sırasında makinede başka işler de çalışıyordu: süreler üst sınırdır ve "
            "bu kadar küçük girdilerle bir ileri geçişin yanında "
            "çözümleme pahalı görünür. Bu sayfayı `python -m benchmarks.zoo_page`, "
            "[results/zoo.json](results/zoo.json) dosyasından "
            "üretir; yeniden ölçmek için: `python -m benchmarks.zoo --help`."
        ),
        "saved": (
            "Rastgele seçilen {count} ağın {same} tanesi budanıp `save_pruned` ile kaydedildikten ve yeni bir süreçte "
            "`load_pruned` ile yüklendikten sonra bit bit aynı çıktıları verdi "
            "([results/zoo_saved.json](results/zoo_saved.json), {date}; `{command}`)."
        ),
        "measured": "{date} tarihinde, {machine} üzerinde ağ başına bir iş parçacığıyla ölçüldü; {versions}.",
        "columns": (
            "- **budanabilir**: bir bölümü çıkarılabilen tensörlerdeki parametrelerin payı;\n"
            "- **kalan**: her grubun kanallarının %30'u çıkarıldığında parametrelerden ve çarp-topla işlemlerinden "
            "kalan;\n"
            "- **çözümleme**: gruplar bulunana dek geçen saniye: izleme, eşleme ve deneme kesimleri;\n"
            "- **bütün kalan**: en çok kanalı tutan üç neden, her biri kanal sayısıyla. `*` farklı sayıların yerine "
            "geçer. Ağın çıktılarının ve girdi kanallarının kaldığı yinelenmez."
        ),
        "summary": "Özet",
        "suite": "kütüphane",
        "networks": "ağ",
        "network": "ağ",
        "result": "sonuç",
        "parameters": "parametre",
        "prunable": "budanabilir",
        "kept": "kalan: parametre / MAC",
        "analysis": "çözümleme",
        "whole": "bütün kalan ve nedeni (kanal)",
        "mean": "budanabilir, ortalama",
        "multiple": "izleme + eşleme / bir ileri geçiş, medyan",
        "slicing": "dilimleme / kopyalama, medyan",
        "more": "gösterilmeyen neden: {count}",
        "seconds": "{value} sn",
    },
}
STATUSES = {
    "verified": {"en": "proven", "tr": "kanıtlandı"},
    "refused": {"en": "refused", "tr": "reddedildi"},
    "unusable": {"en": "proven, but not usable everywhere", "tr": "kanıtlandı, ama her yerde kullanılamıyor"},
    "hung": {"en": "out of time", "tr": "süre doldu"},
    "crashed": {"en": "crashed", "tr": "çöktü"},
    "wrong": {"en": "**wrong**", "tr": "**yanlış**"},
}
Row = dict[str, Any]


def make_page(results: dict[str, Any], saved: dict[str, Any], language: str) -> str:
    """The whole page in one language, of the results of `benchmarks.zoo` and of `benchmarks.zoo_saved`."""
    texts = TEXTS[language]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items() if version)
    suites = {suite: [row for row in results["rows"].values() if row["suite"] == suite] for suite in SUITES}
    suites = {suite: rows for suite, rows in suites.items() if rows}
    every = [row for rows in suites.values() for row in rows]
    three = sum(len(row["settings"]) == 3 for row in every)
    parts = [
        f"# {texts['title']}",
        texts["other"],
        texts["intro"].format(three=three, count=len(every)),
        texts["measured"].format(date=results["measured"], machine=results["machine"], versions=versions),
        f"## {texts['summary']}",
        _summary(suites, language),
        texts["columns"],
        texts["saved"].format(
            same=sum(row["status"] == "verified" for row in saved["rows"].values()),
            count=len(saved["rows"]),
            date=saved["measured"],
            command=saved["command"],
        ),
    ]
    for suite, rows in suites.items():
        parts += [f"## {suite}", _table(rows, language)]
    return "\n\n".join(parts) + "\n"


def _summary(suites: dict[str, list[Row]], language: str) -> str:
    texts = TEXTS[language]
    statuses = [
        status for status in STATUSES if any(row["status"] == status for rows in suites.values() for row in rows)
    ]
    titles = [texts["suite"], texts["networks"], *(STATUSES[status][language] for status in statuses)]
    titles += [texts["mean"], texts["multiple"], texts["slicing"]]
    lines = [titles]
    for suite, rows in suites.items():
        counts = [str(sum(row["status"] == status for row in rows)) for status in statuses]
        known = [row for row in rows if "prunable_share" in row]
        multiples = [(row["trace_s"] + row["coupling_s"]) / row["forward_s"] for row in known if "trace_s" in row]
        slicing = [row["slicing_multiple"] for row in known if "slicing_multiple" in row]
        mean = statistics.mean(row["prunable_share"] for row in known) if known else None
        medians = [_number(statistics.median(values), language) if values else "—" for values in (multiples, slicing)]
        lines.append([suite, str(len(rows)), *counts, percent(mean, language), *medians])
    return _markdown(lines, left=(0,))


def _table(rows: Sequence[Row], language: str) -> str:
    texts = TEXTS[language]
    titles = [texts[name] for name in ("network", "result", "parameters", "prunable", "kept", "analysis", "whole")]
    lines = [titles]
    for row in rows:
        kept = row["settings"].get("local 0.3", {})
        shares = [kept[key] / row[key] if kept.get(key) and row.get(key) else None for key in ("parameters", "macs")]
        seconds = sum(row[f"{step}_s"] for step in ("trace", "coupling", "fitting")) if "trace_s" in row else None
        lines.append(
            [
                f"`{row['name']}`",
                STATUSES[row["status"]][language],
                scaled(row["parameters"], language) if "parameters" in row else "—",
                percent(row.get("prunable_share"), language),
                " / ".join(percent(share, language, 0) for share in shares),
                "—" if seconds is None else texts["seconds"].format(value=_number(seconds, language)),
                merge_reasons(row.get("frozen", []), language)
                if row["status"] == "verified"
                else _escape(row["message"]),
            ]
        )
    return _markdown(lines, left=(0, 1, 6))


def _number(value: float, language: str) -> str:
    return short_number(float(f"{value:.2g}"), language)


def merge_reasons(frozen: Sequence[dict[str, Any]], language: str) -> str:
    """The reasons that hold the most channels; those that differ in numbers only (layer 1, layer 2) are one."""
    channels: dict[str, int] = defaultdict(int)
    wordings: dict[str, set[str]] = defaultdict(set)
    for each in frozen:
        if OBVIOUS.fullmatch(each["reason"]):
            continue
        key = re.sub(r"\d+", "*", each["reason"])
        channels[key] += each["channels"]
        wordings[key].add(each["reason"])
    ranked = sorted(channels, key=lambda key: -channels[key])
    shown = []
    for key in ranked[:MOST_REASONS]:
        reason = key if len(wordings[key]) > 1 else next(iter(wordings[key]))
        shown.append(f"{_escape(term(language, reason))} ({whole_number(channels[key], language)})")
    if len(ranked) > MOST_REASONS:
        shown.append(TEXTS[language]["more"].format(count=len(ranked) - MOST_REASONS))
    return "; ".join(shown) or "—"


def _escape(text: str) -> str:
    text = " ".join(text.split())
    text = text if len(text) <= 240 else text[:239] + "…"
    return re.sub(r"([*_|<\[\]])", r"\\\1", text)


def _markdown(lines: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """A Markdown table; all columns but some are aligned to the right."""
    styles = ["---" if column in left else "---:" for column in range(len(lines[0]))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (lines[0], styles, *lines[1:]))


def main() -> None:
    """Writes both pages."""
    results, saved = (json.loads(path.read_text(encoding="utf-8")) for path in (RESULTS, SAVED))
    for language, path in PAGES.items():
        path.write_text(make_page(results, saved, language), encoding="utf-8")


if __name__ == "__main__":
    main()
