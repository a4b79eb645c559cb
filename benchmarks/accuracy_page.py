"""The pages `docs/accuracy.md` and `docs/accuracy.tr.md`, and their figures: how accurate networks are after the cut.

    python -m benchmarks.accuracy --output docs/results/accuracy.csv
    python -m benchmarks.finetune --output docs/results/finetune.csv
    python -m benchmarks.accuracy --page

`tests/test_accuracy_benchmark.py` holds the pages to the results.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks.accuracy import BEST, CRITERIA, Row, read_facts, read_rows
from benchmarks.finetune import describe_trials, markdown_table, read_trials, summarise
from benchmarks.subjects import TITLES
from cleanai.plots import CostCurve, CostPoint, plot_accuracy_cost
from cleanai.recover import METHODS
from cleanai.texts import local_number, percent, scaled, whole_number

DOCS = Path(__file__).parent.parent / "docs"
PAGES = {"en": "accuracy.md", "tr": "accuracy.tr.md"}
FINETUNED = "finetune.csv"
FAMILIES = {
    "reconstruction": ("reconstruction",),
    "weights": ("l1", "l2", "bn_scale", "fpgm", "lamp"),
    "gradients": ("taylor", "hessian"),
    "activations": ("activation", "wanda", "weight_activation", "coverage", "coverage_combined"),
    "random": ("random",),
}
OFF_TARGET = 0.01  # a share of the MACs that misses what was asked for by more is written beside the accuracy
DPI = 92

TEXTS = {
    "en": {
        "title": "Accuracy right after the cut",
        "other": "[Türkçe](accuracy.tr.md)",
        "intro": (
            "Trained networks, cut by every criterion to several shares of their multiply-accumulates (MACs), and "
            "repaired in every way that needs no training. Channels of all groups are ranked together. Scores and "
            "repairs see calibration images only; the gradient criteria use their labels, nothing else does. "
            "Accuracies are top-1 in percent on test images that nothing was chosen by, and MACs are counted anew on "
            "the network that comes out. This page is made from [results/accuracy.csv](results/accuracy.csv), which "
            "also has all parameters and times, by `python -m benchmarks.accuracy --page`."
        ),
        "measured": "Measured on {date} on {machine}, {cores} cores, {threads} torch thread(s); {versions}. Command:",
        "subject": (
            "Before: **{accuracy}** with {macs} MACs and {parameters} parameters, on {test} test images ({data}). "
            "Calibrated on {calibration} images{mirror}."
        ),
        "mirrored": " and their mirror images",
        "vit": (
            "The project trained this small ViT itself, in a few epochs on one CPU core (`python -m "
            "benchmarks.train_vit`); it is far from the best a ViT can do on CIFAR-10."
        ),
        "photos": "The photos are easier than ImageNet's validation images: these numbers are no ImageNet accuracies.",
        "headline": (
            "`reconstruction` with `least_squares` at {share} of the MACs: **{accuracy}**, after {seconds} s of "
            "scoring, cutting and repair."
        ),
        "best": (
            "The figure and the first table of each network show the best repair of each criterion among those that "
            "were measured for it: where the second table has a dash, that repair was not tried and could do better. "
            "In brackets the repair: BN = batchnorm, LS = least_squares, bias, none; with it the share of the MACs "
            "that is really left, where it misses the target by more than a point."
        ),
        "detail": "Every repair at {share} of the MACs:",
        "criterion": "criterion",
        "macs": "MACs {share}",
        "figure": "Accuracy against MACs kept, the best measured repair of each criterion",
        "missing": "A dash stands for what has not been measured. What could not be measured:",
        "dash": "A dash stands for what has not been measured.",
        "finetuned": "After fine-tuning",
        "finetuned_intro": (
            "ResNet-20 cut to {share} of the MACs and trained for {epochs} epoch(s) on {images} images, the same for "
            "all; {seeds} seeds, which change the order and the augmentation of the images (the cut is the same). "
            "*Noise*: the mean differs from the best by less than twice the standard error of the difference, so that "
            "these runs do not tell the two apart. With so few seeds that is a rough line. From "
            "[results/finetune.csv](results/finetune.csv), by `python -m benchmarks.finetune`."
        ),
        "repair": "repair",
        "cut": "after cut and repair",
        "mean": "fine-tuned, mean",
        "spread": "standard deviation",
        "behind": "behind the best",
        "noise": "noise",
        "real": "difference",
        "top": "best",
    },
    "tr": {
        "title": "Kesimden hemen sonraki doğruluk",
        "other": "[English](accuracy.md)",
        "intro": (
            "Eğitilmiş ağlar her ölçütle, çarp-topla işlemlerinin (MAC) birkaç farklı payına kadar kesildi ve eğitim "
            "gerektirmeyen her yolla onarıldı. Bütün grupların kanalları birlikte sıralandı. Puanlar ve onarımlar "
            "yalnız kalibrasyon görüntülerini görür; etiketlerini yalnız gradyan ölçütleri kullanır. Doğruluklar, "
            "hiçbir seçimde kullanılmayan sınama görüntülerinde yüzde olarak ilk tahminin doğruluğudur; MAC, ortaya "
            "çıkan ağda yeniden sayılır. Bu sayfayı `python -m benchmarks.accuracy --page`, parametreleri ve süreleri "
            "de içeren [results/accuracy.csv](results/accuracy.csv) dosyasından üretir."
        ),
        "measured": (
            "{date} tarihinde {machine} üzerinde ölçüldü; {cores} çekirdek, {threads} torch iş parçacığı; {versions}. "
            "Komut:"
        ),
        "subject": (
            "Önce: **{accuracy}**; {macs} MAC, {parameters} parametre, {test} sınama görüntüsü ({data}). Kalibrasyon: "
            "{calibration} görüntü{mirror}."
        ),
        "mirrored": " ve ayna görüntüleri",
        "vit": (
            "Bu küçük ViT'i proje kendisi, tek işlemci çekirdeğinde birkaç epokta eğitti "
            "(`python -m benchmarks.train_vit`); bir ViT'in CIFAR-10'da ulaşabileceğinin çok altındadır."
        ),
        "photos": "Fotoğraflar ImageNet'in doğrulama görüntülerinden kolaydır: bu sayılar ImageNet doğruluğu değildir.",
        "headline": (
            "MAC {share} iken `least_squares` onarımıyla `reconstruction`: **{accuracy}**; puanlama, kesim ve onarım "
            "{seconds} sn."
        ),
        "best": (
            "Şekil ve her ağın ilk tablosu, her ölçütün ölçülmüş onarımlarından en iyisini gösterir: ikinci tabloda "
            "çizgi olan yerde o onarım denenmemiştir ve daha iyi olabilir. Ayraç içinde onarım: BN = batchnorm, LS = "
            "least_squares, bias, none; hedef bir puandan fazla şaştıysa gerçekte kalan MAC payı da yazılıdır."
        ),
        "detail": "MAC {share} iken bütün onarımlar:",
        "criterion": "ölçüt",
        "macs": "MAC {share}",
        "figure": "Kalan MAC'e göre doğruluk, her ölçütün ölçülen en iyi onarımıyla",
        "missing": "Çizgi, ölçülmemiş demektir. Ölçülemeyenler:",
        "dash": "Çizgi, ölçülmemiş demektir.",
        "finetuned": "İnce ayardan sonra",
        "finetuned_intro": (
            "ResNet-20, MAC {share} kalacak biçimde kesildi ve hepsi için aynı olmak üzere {images} görüntüyle "
            "{epochs} epok eğitildi; {seeds} tohum görüntülerin sırasını ve çeşitlenmesini değiştirir (kesim aynıdır). "
            "*Gürültü*: ortalama, en iyisinden farkın standart hatasının iki katından az ayrılıyor; bu koşular ikisini "
            "ayırt edemiyor. Bu kadar az tohumla bu kaba bir sınırdır. Kaynak: "
            "[results/finetune.csv](results/finetune.csv), `python -m benchmarks.finetune`."
        ),
        "repair": "onarım",
        "cut": "kesim ve onarımdan sonra",
        "mean": "ince ayarlı, ortalama",
        "spread": "standart sapma",
        "behind": "en iyiden geri",
        "noise": "gürültü",
        "real": "fark",
        "top": "en iyi",
    },
}
SHORT = {"batchnorm": "BN", "least_squares": "LS", "bias": "bias", "none": "none"}


def write_pages(table: Path, docs: Path = DOCS) -> list[Path]:
    """Draws the figures and writes both pages from the results; gives the files."""
    rows, facts = read_rows(table), read_facts(table.with_suffix(".json"))
    trials = table.with_name(FINETUNED)
    written = []
    for language, name in PAGES.items():
        written += draw_figures(rows, docs / "images", language)
        page = docs / name
        page.write_text(make_page(rows, facts, language, trials), encoding="utf-8")
        written.append(page)
    return written


def draw_figures(rows: Sequence[Row], folder: Path, language: str) -> list[Path]:
    """The figure of one language as PNG and SVG, the same bytes for the same rows."""
    figure = plot_accuracy_cost(make_curves(rows, language), language)
    paths = [folder / f"accuracy_macs_{language}.{ending}" for ending in ("png", "svg")]
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(paths[0], dpi=DPI, metadata={"Software": None})
    with mpl.rc_context({"svg.hashsalt": "cleanai"}):
        figure.savefig(paths[1], metadata={"Date": None, "Creator": None})
    return paths


def make_curves(rows: Sequence[Row], language: str) -> list[CostCurve]:
    """One line per network and criterion: at every share, the best repair that was measured."""
    curves = []
    for model in list_models(rows):
        own = [row for row in rows if row.model == model]
        for family, criteria in FAMILIES.items():
            for criterion in criteria:
                best = find_best([row for row in own if row.criterion == criterion])
                points = tuple(
                    CostPoint(row.keep, row.macs_kept, row.accuracy, SHORT[row.recovery])
                    for row in best.values()
                    if row.macs_kept is not None and row.accuracy is not None
                )
                curves.append(CostCurve(_title(model, language), criterion, family, own[0].accuracy_before, points))
    return [curve for curve in curves if curve.points]


def find_best(rows: Sequence[Row]) -> dict[float, Row]:
    """The most accurate row at each share that was asked for; the first of equals, failed rows left out."""
    best: dict[float, Row] = {}
    for row in rows:
        if row.accuracy is not None and (row.keep not in best or row.accuracy > (best[row.keep].accuracy or 0.0)):
            best[row.keep] = row
    return best


def list_models(rows: Sequence[Row]) -> list[str]:
    """The networks in the table, in the order of the table."""
    return list(dict.fromkeys(row.model for row in rows))


def make_page(rows: Sequence[Row], facts: dict[str, Any], language: str, trials: Path) -> str:
    """The whole page in one language."""
    texts = TEXTS[language]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    run = {key: facts[key] for key in ("machine", "cores", "threads")}
    parts = [
        f"# {texts['title']}",
        texts["other"],
        texts["intro"],
        texts["measured"].format(date=facts["measured"], versions=versions, **run),
        f"    {facts['command']}",
        f"![{texts['figure']}](images/accuracy_macs_{language}.svg)",
        texts["best"],
    ]
    for model in list_models(rows):
        own = [row for row in rows if row.model == model]
        parts += [f"## {_title(model, language)}", *_describe(model, own, facts, language)]
    failures = sorted({f"{row.model}, {row.criterion}: {row.note}" for row in rows if row.accuracy is None})
    parts.append(texts["missing" if failures else "dash"])
    parts += ["\n".join(f"- {failure}" for failure in failures)] if failures else []
    if trials.is_file():
        parts += [f"## {texts['finetuned']}", *_describe_trials(trials, language)]
    return "\n\n".join(parts) + "\n"


def _title(model: str, language: str) -> str:
    title = TITLES.get(model, model)
    return title.replace("photos", "fotoğrafları") if language == "tr" else title


def _describe(model: str, rows: Sequence[Row], facts: dict[str, Any], language: str) -> list[str]:
    texts, subject = TEXTS[language], facts["subjects"][model]
    shares = sorted({row.keep for row in rows}, reverse=True)
    middle = min(shares, key=lambda share: abs(share - 0.5))
    values = {
        "accuracy": _accuracy(subject["accuracy"], language),
        "macs": scaled(subject["macs"], language),
        "parameters": whole_number(subject["parameters"], language),
        "test": whole_number(subject["test_images"], language),
        "calibration": whole_number(subject["calibration_images"], language),
        "mirror": texts["mirrored"] if subject["mirror"] else "",
        "data": subject["data"].replace("photos", "fotoğrafları") if language == "tr" else subject["data"],
    }
    parts = [texts["subject"].format(**values)]
    parts += [texts["vit"]] if model == "vit" else []
    parts += [texts["photos"]] if "photos" in subject["data"] else []
    for row in rows:
        if (row.criterion, row.recovery, row.keep) == (*BEST, middle) and row.accuracy is not None:
            seconds = row.seconds_scores + row.seconds_prune + row.seconds_repair
            found = {"share": percent(middle, language, 0), "accuracy": _accuracy(row.accuracy, language)}
            parts.append(texts["headline"].format(**found, seconds=round(seconds)))
    parts.append(_best_table(rows, shares, language))
    parts += [texts["detail"].format(share=percent(middle, language, 0)), _detail_table(rows, middle, language)]
    return parts


def _best_table(rows: Sequence[Row], shares: Sequence[float], language: str) -> str:
    """Criterion by share: the best repair's accuracy, which repair, and the share that is left if it is off target."""
    texts = TEXTS[language]
    best = {criterion: find_best([row for row in rows if row.criterion == criterion]) for criterion in _list(rows)}
    tops = {
        share: max((found[share].accuracy or 0 for found in best.values() if share in found), default=0)
        for share in shares
    }
    lines = [[texts["criterion"], *(texts["macs"].format(share=percent(share, language, 0)) for share in shares)]]
    for criterion, found in best.items():
        cells = [_best_cell(found[share], tops[share], language) if share in found else "—" for share in shares]
        lines.append([f"`{criterion}`", *cells])
    return markdown_table(lines, left=(0,))


def _best_cell(row: Row, top: float, language: str) -> str:
    notes = [SHORT[row.recovery]]
    if row.macs_kept is not None and abs(row.macs_kept - row.keep) > OFF_TARGET:
        notes.append(percent(row.macs_kept, language))
    accuracy = _number(row.accuracy, language)
    return f"{f'**{accuracy}**' if row.accuracy == top else accuracy} ({', '.join(notes)})"


def _detail_table(rows: Sequence[Row], share: float, language: str) -> str:
    """Criterion by repair, at one share."""
    found = {(row.criterion, row.recovery): row.accuracy for row in rows if row.keep == share}
    methods = [method for method in METHODS if any(recovery == method for _, recovery in found)]
    lines = [[TEXTS[language]["criterion"], *(f"`{method}`" for method in methods)]]
    for criterion in _list(rows):
        lines.append([f"`{criterion}`", *(_number(found.get((criterion, method)), language) for method in methods)])
    return markdown_table(lines, left=(0,))


def _list(rows: Sequence[Row]) -> list[str]:
    """The criteria in the table: those of the benchmark in its order, then others."""
    own = list(dict.fromkeys(row.criterion for row in rows))
    return [*(name for name in CRITERIA if name in own), *(name for name in own if name not in CRITERIA)]


def _accuracy(value: float, language: str) -> str:
    return percent(value / 100, language, digits=2)


def _number(value: float | None, language: str) -> str:
    return "—" if value is None else local_number(f"{value:.1f}", language)


def _describe_trials(path: Path, language: str) -> list[str]:
    """The fine-tuned comparison, and which differences are noise."""
    texts, trials = TEXTS[language], read_trials(path)
    facts = describe_trials(trials)
    intro = texts["finetuned_intro"].format(
        share=percent(facts["keep"], language, 0),
        epochs=facts["epochs"],
        images=whole_number(facts["train_images"], language),
        seeds=facts["seeds"],
    )
    lines = [[texts[name] for name in ("criterion", "repair", "cut", "mean", "spread", "behind")] + [""]]
    for each in summarise(trials):
        verdict = texts[each.verdict]
        numbers = (each.accuracy_cut, each.mean, each.deviation, each.behind)
        cells = [local_number(f"{value:.2f}", language) if value is not None else "—" for value in numbers]
        lines.append([f"`{each.criterion}`", each.recovery, *cells, verdict])
    return [intro, markdown_table(lines, left=(0, 1, 6))]
