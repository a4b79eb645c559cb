"""The pages `docs/peers.md` and `docs/peers.tr.md`: CleanAI beside its peers, from what `benchmarks.peers` measured.

    python -m benchmarks.peers
    python -m benchmarks.peers_page

What is said of a peer without a measurement names its source. `tests/test_peers.py` holds the pages to the results.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import CRITERIA, RESULTS, TIMED, TOOLS, merge_outcomes
from benchmarks.peers_nets import NETWORKS
from cleanai.texts import percent, short_number

DOCS = Path(__file__).parent.parent / "docs"
ACCURACY = DOCS / "results" / "accuracy.csv"
PAGES = {"en": DOCS / "peers.md", "tr": DOCS / "peers.tr.md"}
MEASURED = tuple(name for name, tool in TOOLS.items() if tool.runs)
Results = Mapping[str, Any]

# In the order of a table's columns, from best to worst.
OUTCOME_TEXTS = {
    "equal": {"en": "correct", "tr": "doğru"},
    "left alone": {"en": "left alone", "tr": "dokunulmadı"},
    "refused": {"en": "refused", "tr": "reddedildi"},
    "time-out": {"en": "out of time", "tr": "süre doldu"},
    "crash": {"en": "crashed", "tr": "çöktü"},
    "wrong": {"en": "**wrong**", "tr": "**yanlış**"},
}

_TP = "https://github.com/VainF/Torch-Pruning/blob/e80127d/README.md"
_KIRIGAMI = "https://pypi.org/project/torch-kirigami/0.2.1/"
_FASTERAI = "https://pypi.org/project/fasterai/0.4.1/"
_BY_TP, _BY_KIRIGAMI, _BY_FASTERAI = (f" ([README]({link}))" for link in (_TP, _KIRIGAMI, _FASTERAI))


def _part(anchor: str) -> str:
    """A citation of one part of Torch-Pruning's README."""
    return f" ([README]({_TP}#{anchor}))"


# What cannot be measured here: one row per line, a cell per tool of MEASURED in their order, (English, Turkish).
_FEATURES: tuple[tuple[tuple[str, str], ...], ...] = (
    (
        ("each cut is proven", "her kesim kanıtlanır"),
        ("yes, in double precision, by default", "evet, çift duyarlıkta, kendiliğinden"),
        ("—", "—"),
        ("the plan is validated before it is applied" + _BY_KIRIGAMI, "plan uygulanmadan denetlenir" + _BY_KIRIGAMI),
        ("—", "—"),
    ),
    (
        ("budgets that are met", "tutturulan bütçeler"),
        ("channels, parameters, MACs, latency", "kanal, parametre, MAC, gecikme"),
        ("channels" + _part("high-level-pruners"), "kanal" + _part("high-level-pruners")),
        ("channels, parameters" + _BY_KIRIGAMI, "kanal, parametre" + _BY_KIRIGAMI),
        ("filters" + _BY_FASTERAI, "filtre" + _BY_FASTERAI),
    ),
    (
        ("recovery without training", "eğitimsiz onarım"),
        ("BatchNorm, bias, least squares", "BatchNorm, yanlılık, en küçük kareler"),
        ("—", "—"),
        ("in example workflows (OSSCAR, VBP)" + _BY_KIRIGAMI, "örnek akışlarda (OSSCAR, VBP)" + _BY_KIRIGAMI),
        ("—", "—"),
    ),
    (
        ("sparse (regularised) training", "seyrek (düzenlileştirilmiş) eğitim"),
        ("**no**", "**yok**"),
        (
            "yes, several pruners" + _part("sparse-training-optional"),
            "evet, birkaç budayıcı" + _part("sparse-training-optional"),
        ),
        ("yes" + _BY_KIRIGAMI, "evet" + _BY_KIRIGAMI),
        ("yes, `RegularizeCallback`" + _BY_FASTERAI, "evet, `RegularizeCallback`" + _BY_FASTERAI),
    ),
    (
        ("sizes that a forward reads from attributes", "forward'ın özniteliklerden okuduğu boyutlar"),
        ("follow the cut", "kesimi izler"),
        (
            "are updated by the user" + _part("modify-static-attributes-or-forward-functions"),
            "kullanıcı günceller" + _part("modify-static-attributes-or-forward-functions"),
        ),
        ("module attributes follow" + _BY_KIRIGAMI, "modül öznitelikleri izler" + _BY_KIRIGAMI),
        ("heads of fused attention follow (`Pruner`)", "birleşik dikkatin başlıkları izler (`Pruner`)"),
    ),
    (
        ("saved as", "nasıl saklanır"),
        ("safetensors and JSON; loading runs no code", "safetensors ve JSON; yüklerken kod çalışmaz"),
        ("the whole model, pickled" + _part("save-and-load"), "modelin tamamı, pickle ile" + _part("save-and-load")),
        (
            "compact checkpoint and the original model class" + _BY_KIRIGAMI,
            "küçük bir kayıt ve özgün model sınıfı" + _BY_KIRIGAMI,
        ),
        ("—", "—"),
    ),
    (
        ("recipes for LLMs, YOLO, diffusion", "LLM, YOLO, difüzyon tarifleri"),
        ("**no**; tests on tiny `transformers` models", "**yok**; küçük `transformers` modelleriyle testler"),
        ("yes, many" + _BY_TP, "evet, çok" + _BY_TP),
        ("ResNet, ViT, ConvNeXt workflows" + _BY_KIRIGAMI, "ResNet, ViT, ConvNeXt akışları" + _BY_KIRIGAMI),
        ("—", "—"),
    ),
    (
        ("published results", "yayımlanmış sonuçlar"),
        ("**none**, only this repository's", "**yok**, yalnızca bu deponunkiler"),
        (
            "DepGraph (CVPR 2023), Isomorphic Pruning (ECCV 2024), tables to reproduce" + _BY_TP,
            "DepGraph (CVPR 2023), Isomorphic Pruning (ECCV 2024), yinelenebilir tablolar" + _BY_TP,
        ),
        ("claims none" + _BY_KIRIGAMI, "olduğunu söylemiyor" + _BY_KIRIGAMI),
        ("—", "—"),
    ),
    (
        ("beyond structured pruning", "yapısal budamanın ötesi"),
        ("**nothing**", "**yok**"),
        ("—", "—"),
        ("—", "—"),
        ("sparsity, distillation, quantisation" + _BY_FASTERAI, "seyreklik, damıtma, nicemleme" + _BY_FASTERAI),
    ),
    (
        ("licence", "lisans"),
        ("MIT", "MIT"),
        ("MIT", "MIT"),
        ("MIT", "MIT"),
        ("Apache-2.0", "Apache-2.0"),
    ),
)

TEXTS = {
    "en": {
        "title": "CleanAI beside its peers",
        "other": "[Türkçe](peers.tr.md)",
        "intro": (
            "What the structured-pruning tools of the Python package index do with the same networks, on the same "
            "machine, with the torch of today. This page is made from [results/peers.json](results/peers.json) by "
            "`python -m benchmarks.peers_page`; `python -m benchmarks.peers` measures anew, every peer in an "
            "environment of its own. Measured on {date} on {machine}, one thread; {versions}."
        ),
        "caution": (
            "It is our own benchmark, and it is read with care: the hard networks were chosen from mistakes that we "
            "knew of before we wrote CleanAI, so CleanAI passes them by construction and they say nothing about how "
            "often such networks occur. The ordinary networks are the fairer sample. Torch-Pruning has years of use, "
            "published results and recipes that CleanAI does not have (see [features](#features))."
        ),
        "short": "In short",
        "correct": "Correct cuts",
        "correct_intro": (
            "Each tool removed {ratios} of the channels of each layer by L2 magnitude. The judge "
            "(`benchmarks/peers_oracle.py`) sees only the weights that are left and the outputs: it finds out from "
            "the values which slices are left, runs the original without the others in double precision, and "
            "compares. *Correct* means smaller and equal to within {tolerance}; *wrong* that the smaller network runs "
            "and computes something else; *refused* that the tool said in an error of its own that it cannot; *out of "
            "time* more than {seconds} s of processor time. A network counts by the worse of its two ratios. Where "
            "heads of `nn.MultiheadAttention` got narrower, their new scale is not held against a tool."
        ),
        "hard": "hard networks",
        "ordinary": "ordinary networks",
        "network": "network",
        "tool": "tool",
        "of": "{count} of {total}",
        "called": "How each was called",
        "told": (
            "Torch-Pruning was told which layers give the output and how many heads there are, fasterai the layers "
            "where it does not find them; CleanAI and torch-kirigami find both themselves and were told nothing."
        ),
        "failures": "What went wrong",
        "what": "what happened",
        "runs_not": "Not measured",
        "runs_not_intro": (
            "With the torch of this run these two do not run; with the older versions for which they were made they "
            "may. `torch.nn.utils.prune` of torch itself sets weights to zero and removes nothing."
        ),
        "accuracy": "Accuracy at half the MACs",
        "accuracy_intro": (
            "ResNet-20 on CIFAR-10 ({before} before), no training, all groups ranked together except where the "
            "criterion says *local* (each layer gives the same share) or *isomorphic* (layers of the same "
            "structure are ranked together). Each peer's criteria as they are, and with BatchNorm statistics taken "
            "anew by hand from the same {calibration} calibration images and their mirror images, which the peers "
            "do not do themselves; {test} test images. CleanAI's rows are those of "
            "[accuracy.csv](results/accuracy.csv) with the same criteria, and its best recovery. Torch-Pruning was "
            "cut in small steps as in its `reproduce/main.py`, Taylor in one step as in its examples. It is meant to "
            "be trained after the cut: for ResNet-56 with half the MACs [its README]({readme}) reports 92.9 % (L1) "
            "to 93.8 % after training, which is not measured here."
        ),
        "criterion": "criterion",
        "kept": "MACs kept",
        "plain": "as it is",
        "batchnorm": "BatchNorm anew",
        "repaired": "least squares",
        "speed": "Speed",
        "speed_intro": (
            "How long the peer takes for each second that CleanAI takes: medians of ratios taken in turns in one "
            "process, since the machine had much other work, and few rounds. Above 1 CleanAI is faster, below 1 the "
            "peer. Inputs of 224×224. *Analysis*: from the model to its groups; CleanAI's includes its trial cuts, "
            "torch-kirigami's its candidates. *Pruning*: from the model to the one with half the channels, by "
            "magnitude. CleanAI's `prune()` also proves the cut and measures latency and work before and after; the "
            "last column is the time of a peer's pruning against that. fasterai calls Torch-Pruning and is not "
            "timed."
        ),
        "model": "network",
        "analysis": "analysis",
        "pruning": "pruning",
        "proof": "pruning against CleanAI's `prune()`",
        "rounds": "{ratio} (rounds: {rounds})",
        "features": "Features",
        "features_intro": (
            "Where a source is named, that is what it says; — means that we found nothing there about it."
        ),
        "feature": "",
        "short_correct": "hard networks: correct / wrong / crashed or out of time / refused or left alone",
        "short_ordinary": "ordinary networks: the same",
        "short_plain": "ResNet-20 at half the MACs, best criterion, as it is",
        "short_batchnorm": "the same, BatchNorm statistics anew",
        "short_repair": "the same, recovery without training",
        "short_speed": "analysis time, CleanAI = 1 ({models})",
        "built_in": "{accuracy} (built in)",
        "by_hand": "{accuracy} (by hand)",
        "source": "Measured by `python -m benchmarks.peers`; [all of it, with sources and cautions]({page}).",
    },
    "tr": {
        "title": "CleanAI ve benzerleri",
        "other": "[English](peers.md)",
        "intro": (
            "Python paket dizinindeki yapısal budama araçlarının aynı ağlarla, aynı makinede, bugünün torch'uyla ne "
            "yaptığı. Bu sayfayı `python -m benchmarks.peers_page`, [results/peers.json](results/peers.json) "
            "dosyasından üretir; `python -m benchmarks.peers` her aracı kendi ortamında yeniden ölçer. {date} "
            "tarihinde, {machine} üzerinde, tek iş parçacığıyla ölçüldü; {versions}."
        ),
        "caution": (
            "Bu bizim kendi karşılaştırmamızdır ve dikkatle okunmalıdır: zor ağlar, CleanAI yazılmadan önce "
            "bildiğimiz hatalardan seçildi; bu yüzden CleanAI onları tasarımı gereği geçer ve böyle ağların ne "
            "sıklıkta görüldüğü hakkında bir şey söylemezler. Sıradan ağlar daha adil bir örnektir. Torch-Pruning'in "
            "yıllardır süren kullanımı, yayımlanmış sonuçları ve CleanAI'de olmayan tarifleri var (bkz. "
            "[özellikler](#özellikler))."
        ),
        "short": "Kısaca",
        "correct": "Doğru kesimler",
        "correct_intro": (
            "Her araç her katmanın kanallarının {ratios} kadarını L2 büyüklüğüne göre çıkardı. Yargıç "
            "(`benchmarks/peers_oracle.py`) yalnızca kalan ağırlıkları ve çıktıları görür: hangi dilimlerin kaldığını "
            "değerlerden bulur, özgün ağı öbürleri olmadan çift duyarlıkta çalıştırır ve karşılaştırır. *Doğru*, daha "
            "küçük ve {tolerance} içinde eşit demektir; *yanlış*, küçülen ağın çalıştığı ama başka bir şey "
            "hesapladığı; *reddedildi*, aracın kendi hatasıyla yapamayacağını söylediği; *süre doldu*, {seconds} "
            "saniyeden çok işlemci zamanı. Bir ağ iki oranının kötüsüyle sayılır. `nn.MultiheadAttention` başlıkları "
            "daraldıysa ölçeklerinin değişmesi araca yanlış diye yazılmaz."
        ),
        "hard": "zor ağlar",
        "ordinary": "sıradan ağlar",
        "network": "ağ",
        "tool": "araç",
        "of": "{count} / {total}",
        "called": "Her biri nasıl çağrıldı",
        "told": (
            "Torch-Pruning'e çıktıyı veren katmanlar ve başlık sayıları, fasterai'ye kendisi bulamadığı yerde "
            "katmanlar söylendi; CleanAI ve torch-kirigami ikisini de kendileri bulur, onlara bir şey söylenmedi."
        ),
        "failures": "Ters giden neydi",
        "what": "ne oldu",
        "runs_not": "Ölçülmeyenler",
        "runs_not_intro": (
            "Bu ölçümün torch'uyla bu ikisi çalışmıyor; yapıldıkları eski sürümlerle çalışabilirler. torch'un kendi "
            "`torch.nn.utils.prune` modülü ağırlıkları sıfırlar, hiçbir şeyi çıkarmaz."
        ),
        "accuracy": "MAC'lerin yarısında doğruluk",
        "accuracy_intro": (
            "CIFAR-10'da ResNet-20 (önce {before}), eğitim yok; ölçütte *local* (her katman aynı payı verir) ya da "
            "*isomorphic* (aynı yapıdaki katmanlar birlikte sıralanır) denmedikçe bütün gruplar birlikte sıralandı. "
            "Her aracın ölçütleri oldukları gibi ve BatchNorm istatistikleri aynı {calibration} kalibrasyon "
            "görüntüsü ve ayna görüntüleriyle elle yenilenerek (araçlar bunu kendileri yapmaz); {test} test "
            "görüntüsü. CleanAI'nin satırları [accuracy.csv](results/accuracy.csv) dosyasından, aynı ölçütler ve "
            "en iyi onarımıyla. Torch-Pruning, `reproduce/main.py` dosyasındaki gibi küçük adımlarla, Taylor ise "
            "örneklerindeki gibi tek adımda budandı. Kesimden sonra eğitilmek üzere yapılmıştır: MAC'lerin yarısı "
            "kalan ResNet-56 için [README'si]({readme}) eğitimden sonra %92,9 (L1) ile %93,8 arası bildiriyor; bu "
            "burada ölçülmedi."
        ),
        "criterion": "ölçüt",
        "kept": "kalan MAC",
        "plain": "olduğu gibi",
        "batchnorm": "yenilenen BatchNorm",
        "repaired": "en küçük kareler",
        "speed": "Hız",
        "speed_intro": (
            "CleanAI'nin her saniyesine karşılık aracın ne kadar sürdüğü: aynı süreçte sırayla ölçülen oranların "
            "medyanı, çünkü makinede başka çok iş vardı; tur sayısı az. 1'in üstünde CleanAI, altında öbür araç "
            "daha hızlıdır. Girdiler 224×224. *Çözümleme*: modelden gruplarına; CleanAI'ninki deneme kesimlerini, "
            "torch-kirigami'ninki adaylarını da içerir. *Budama*: modelden, büyüklüğe göre kanallarının yarısı "
            "kalan modele. CleanAI'nin `prune()` çağrısı kesimi ayrıca kanıtlar, önce ve sonra gecikmeyi ve iş "
            "miktarını ölçer; son sütun, aracın budama süresinin buna oranıdır. fasterai Torch-Pruning'i çağırır; "
            "süresi ölçülmedi."
        ),
        "model": "ağ",
        "analysis": "çözümleme",
        "pruning": "budama",
        "proof": "CleanAI'nin `prune()` çağrısına karşı budama",
        "rounds": "{ratio} ({rounds} tur)",
        "features": "Özellikler",
        "features_intro": (
            "Kaynak verilen yerde yazan, kaynağın dediğidir; —, orada bu konuda bir şey bulmadığımız anlamına gelir."
        ),
        "feature": "",
        "short_correct": "zor ağlar: doğru / yanlış / çöktü ya da süre doldu / reddedildi ya da dokunulmadı",
        "short_ordinary": "sıradan ağlar: aynısı",
        "short_plain": "MAC'lerin yarısıyla ResNet-20, en iyi ölçüt, olduğu gibi",
        "short_batchnorm": "aynısı, yenilenen BatchNorm istatistikleriyle",
        "short_repair": "aynısı, eğitimsiz onarımla",
        "short_speed": "çözümleme süresi, CleanAI = 1 ({models})",
        "built_in": "{accuracy} (içinde var)",
        "by_hand": "{accuracy} (elle)",
        "source": "`python -m benchmarks.peers` ile ölçüldü; [hepsi, kaynakları ve uyarılarıyla]({page}).",
    },
}


# ------------------------------------------------------------------------------------------------------------ numbers


def list_outcomes(results: Results, tool: str, *, hard: bool) -> dict[str, str]:
    """{network: outcome} of one tool, of the networks that were measured at every ratio."""
    measured = results["correctness"].get(tool, {})
    return {
        name: merge_outcomes(measured[name])
        for name, network in NETWORKS.items()
        if network.is_hard == hard and len(measured.get(name, {})) == len(results["ratios"])
    }


def read_own_accuracy(model: str = "resnet20", keep: float = 0.5) -> dict[tuple[str, str], dict[str, str]]:
    """CleanAI's measured rows by (criterion, recovery)."""
    with ACCURACY.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == model and float(row["keep"]) == keep]
    return {(row["criterion"], row["recovery"]): row for row in rows if row["accuracy"]}


def _tools_with_outcomes(results: Results) -> list[str]:
    return [name for name in MEASURED if results["correctness"].get(name)]


def _title(results: Results, tool: str) -> str:
    version = results["versions_of_tools"].get(tool, "")
    return f"{TOOLS[tool].title} {version}".strip()


def _percent(value: float, language: str) -> str:
    return percent(value / 100, language)


def _number(value: float, language: str) -> str:
    return short_number(float(f"{value:.2g}"), language)


# ------------------------------------------------------------------------------------------------------------- tables


def readme_table(language: str, results: Results | None = None) -> str:
    """The short comparison for the README, a Markdown table in "en" or "tr"."""
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if results is None else results
    texts, tools = TEXTS[language], _tools_with_outcomes(results)
    lines = [["", *(_title(results, tool) for tool in tools)]]
    for title, hard in (("short_correct", True), ("short_ordinary", False)):
        lines.append([texts[title], *(_short_outcomes(results, tool, hard) for tool in tools)])
    own = read_own_accuracy()
    for title, key, recovery in (
        ("short_plain", "accuracy", "none"),
        ("short_batchnorm", "accuracy_batchnorm", "batchnorm"),
    ):
        cells = []
        for tool in tools:
            rows = [row for row in results["accuracy"].get(tool, {}).values() if key in row]
            if tool == "cleanai":
                rows = [{key: float(row["accuracy"])} for (_, how), row in own.items() if how == recovery]
            cell = _percent(max(row[key] for row in rows), language) if rows else "—"
            by_hand = key == "accuracy_batchnorm" and rows
            wording = texts["built_in" if tool == "cleanai" else "by_hand"]
            cells.append(wording.format(accuracy=cell) if by_hand else cell)
        lines.append([texts[title], *cells])
    repaired = max(float(row["accuracy"]) for (_, how), row in own.items() if how == "least_squares")
    lines.append(
        [texts["short_repair"], *(_percent(repaired, language) if tool == "cleanai" else "—" for tool in tools)]
    )
    models = sorted({model for rows in results["speed"].values() for model in rows})
    speeds = [_short_speed(results, tool, models, language) for tool in tools]
    lines.append([texts["short_speed"].format(models=", ".join(models)), *speeds])
    place = 0 if language == "en" else 1
    for feature in (_FEATURES[0], _FEATURES[1], _FEATURES[3], _FEATURES[6], _FEATURES[7], _FEATURES[-1]):
        cells = dict(zip(MEASURED, feature[1:], strict=True))
        lines.append([feature[0][place], *(_without_links(cells[tool][place]) for tool in tools)])
    return _markdown(lines)


def _short_outcomes(results: Results, tool: str, hard: bool) -> str:
    found = list(list_outcomes(results, tool, hard=hard).values())
    kinds = (("equal",), ("wrong",), ("crash", "time-out"), ("refused", "left alone"))
    return " / ".join(str(sum(outcome in kind for outcome in found)) for kind in kinds)


def _short_speed(results: Results, tool: str, models: Sequence[str], language: str) -> str:
    if tool == "cleanai":
        return "1"
    rows = results["speed"].get(tool, {})
    ratios = [rows.get(model, {}).get("analysis", {}).get("ratio") for model in models]
    return " / ".join("—" if ratio is None else _number(ratio, language) for ratio in ratios) if rows else "—"


def _without_links(text: str) -> str:
    return text.partition(" ([")[0]


def make_page(results: Results, language: str) -> str:
    """The whole page in one language."""
    texts = TEXTS[language]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = [
        f"# {texts['title']}",
        texts["other"],
        texts["intro"].format(date=results["measured"], machine=results["machine"], versions=versions),
        texts["caution"],
        f"## {texts['short']}",
        readme_table(language, results),
        f"## {texts['correct']}",
        texts["correct_intro"].format(
            ratios=(" and " if language == "en" else " ve ").join(percent(r, language, 0) for r in results["ratios"]),
            tolerance="1e-6",
            seconds=results["seconds"],
        ),
        _summary(results, language),
        _matrix(results, language),
        f"### {texts['called']}",
        texts["told"],
        "\n".join(f"- **{_title(results, name)}**: {TOOLS[name].called[language]}." for name in MEASURED),
        f"### {texts['failures']}",
        _failures(results, language),
        f"### {texts['runs_not']}",
        texts["runs_not_intro"],
        _not_measured(results),
        f"## {texts['accuracy']}",
        _accuracy_intro(results, language),
        _accuracy(results, language),
        f"## {texts['speed']}",
        texts["speed_intro"],
        _speed(results, language),
        f"## {texts['features']}",
        texts["features_intro"],
        _features(results, language),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(results: Results, language: str) -> str:
    lines = [["", *(OUTCOME_TEXTS[outcome][language].strip("*") for outcome in OUTCOME_TEXTS)]]
    for hard in (True, False):
        kind = TEXTS[language]["hard" if hard else "ordinary"]
        for tool in _tools_with_outcomes(results):
            found = list(list_outcomes(results, tool, hard=hard).values())
            counts = [str(found.count(outcome)) for outcome in OUTCOME_TEXTS]
            lines.append([f"{_title(results, tool)}, {len(found)} {kind}", *counts])
    return _markdown(lines, right=True)


def _matrix(results: Results, language: str) -> str:
    tools = _tools_with_outcomes(results)
    outcomes = {tool: {hard: list_outcomes(results, tool, hard=hard) for hard in (True, False)} for tool in tools}
    lines = [[TEXTS[language]["network"], *(TOOLS[tool].title for tool in tools)]]
    for name, network in NETWORKS.items():
        found = [outcomes[tool][network.is_hard].get(name) for tool in tools]
        if any(found):
            lines.append([network.title[language], *(OUTCOME_TEXTS[each][language] if each else "—" for each in found)])
    return _markdown(lines)


def _failures(results: Results, language: str) -> str:
    texts = TEXTS[language]
    lines = [[texts["tool"], texts["network"], "", texts["what"]]]
    for tool in _tools_with_outcomes(results):
        for name, rows in results["correctness"][tool].items():
            if name not in NETWORKS or len(rows) < len(results["ratios"]):
                continue
            status = merge_outcomes(rows)
            row = next(row for row in rows.values() if row["status"] == status)
            if status in ("equal", "left alone"):
                continue
            lines.append([TOOLS[tool].title, f"`{name}`", OUTCOME_TEXTS[status][language], _describe(row, language)])
    return _markdown(lines)


def _describe(row: Mapping[str, Any], language: str) -> str:
    if row["status"] == "wrong" and row.get("error") is not None:
        words = {"en": "relative difference", "tr": "bağıl fark"}[language]
        return f"{words} {_number(row['error'], language)}"
    text = row.get("message") or row.get("note") or "—"
    text = text if len(text) <= 120 else text[:119] + "…"
    return "`" + text.replace("`", "'").replace("|", "/") + "`" if text != "—" else text


def _not_measured(results: Results) -> str:
    lines = []
    for name, tool in TOOLS.items():
        rows = [row for each in results["correctness"].get(name, {}).values() for row in each.values()]
        if not tool.runs and rows:
            lines.append(f"- **{_title(results, name)}**: `{rows[0].get('message', rows[0]['status'])}`")
    return "\n".join(lines) or "—"


def _accuracy_intro(results: Results, language: str) -> str:
    own = next(iter(read_own_accuracy().values()))
    return TEXTS[language]["accuracy_intro"].format(
        before=_percent(float(own["accuracy_before"]), language),
        readme=f"{_TP}#reproduce-paper-results",
        calibration=f"{int(own['calibration_images']):,}".replace(",", "," if language == "en" else "."),
        test=f"{int(own['test_images']):,}".replace(",", "," if language == "en" else "."),
    )


def _accuracy(results: Results, language: str) -> str:
    texts = TEXTS[language]
    lines = [[texts[key] for key in ("tool", "criterion", "kept", "plain", "batchnorm", "repaired")]]
    own = read_own_accuracy()
    shown = ("reconstruction", *(name for name in CRITERIA["torch-pruning"] if (name, "none") in own))
    for criterion in shown:
        rows = [own.get((criterion, how)) for how in ("none", "batchnorm", "least_squares")]
        cells = [_percent(float(row["accuracy"]), language) if row else "—" for row in rows]
        kept = percent(float(own[criterion, "none"]["macs_kept"]), language)
        lines.append(["CleanAI", f"`{criterion}`", kept, *cells])
    for tool in CRITERIA:
        for criterion, row in results["accuracy"].get(tool, {}).items():
            if "accuracy" not in row:
                lines.append([TOOLS[tool].title, f"`{criterion}`", "—", _describe(row, language), "—", "—"])
                continue
            cells = [_percent(row[key], language) for key in ("accuracy", "accuracy_batchnorm")]
            lines.append([TOOLS[tool].title, f"`{criterion}`", percent(row["macs_kept"], language), *cells, "—"])
    return _markdown(lines)


def _speed(results: Results, language: str) -> str:
    texts = TEXTS[language]
    names = ("analysis", "pruning", "prune()")
    lines = [[texts["tool"], texts["model"], texts["analysis"], texts["pruning"], texts["proof"]]]
    for tool in TIMED:
        for model, row in results["speed"].get(tool, {}).items():
            cells = []
            for name in names:
                each = row.get(name, {})
                ratio = _number(each["ratio"], language) if "ratio" in each else None
                wording = texts["rounds"].format(ratio=ratio, rounds=each.get("rounds"))
                cells.append(wording if ratio else _describe(each, language) if each else "—")
            lines.append([TOOLS[tool].title, f"`{model}`", *cells])
    return _markdown(lines)


def _features(results: Results, language: str) -> str:
    place = 0 if language == "en" else 1
    lines = [["", *(_title(results, tool) for tool in MEASURED)]]
    lines += [[cell[place] for cell in feature] for feature in _FEATURES]
    return _markdown(lines)


def _markdown(lines: Sequence[Sequence[str]], *, right: bool = False) -> str:
    styles = ["---" if not column or not right else "---:" for column in range(len(lines[0]))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (lines[0], styles, *lines[1:]))


def main() -> None:
    """Writes both pages."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    for language, path in PAGES.items():
        path.write_text(make_page(results, language), encoding="utf-8")


if __name__ == "__main__":
    main()
