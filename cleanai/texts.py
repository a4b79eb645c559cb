"""The words of a report in English and Turkish, and how its numbers are written.

English phrases are their own keys, so the code reads as the report does. `say` is strict: a phrase without a
translation is a bug and raises. `term` is lenient: words that come from outside (a stage name, a reason, a setting) are
translated when they are known and shown unchanged otherwise.

    >>> say("tr", "Parameters")
    'Parametre'
    >>> term("tr", "my own stage")
    'my own stage'
    >>> percent(0.4957), percent(0.4957, "tr"), percent(None)
    ('49.6 %', '%49.6', '—')
"""

from __future__ import annotations

import functools
import math
import re

from cleanai.errors import InputError

LANGUAGES = ("en", "tr")
MISSING = "—"

# Phrases the renderers and figures use. Placeholders are the same in both languages.
_TURKISH = {
    # Titles and headings
    "Pruning report: {model}": "Budama raporu: {model}",
    "Before and after": "Önce ve sonra",
    "Asked against reached": "İstenen ve ulaşılan",
    "Groups": "Gruplar",
    "Frozen": "Dondurulanlar",
    "Proof": "Doğruluk kanıtı",
    "Warnings": "Uyarılar",
    "Settings": "Ayarlar",
    "Training": "Eğitim",
    "Scores": "Puanlar",
    "Created {when}": "Oluşturulma: {when}",
    # Before and after
    "quantity": "büyüklük",
    "change": "değişim",
    "Parameters": "Parametre",
    "Size": "Boyut",
    "MACs": "MAC",
    "FLOPs": "FLOP",
    "Latency": "Gecikme",
    "Accuracy": "Doğruluk",
    "Loss": "Kayıp",
    "{value} points": "{value} puan",
    "MB = 10^6 bytes; MACs = multiply-accumulates of one call on the example inputs; FLOPs = 2 × MACs.": (
        "MB = 10^6 bayt; MAC = örnek girdilerle bir çağrıdaki çarp-topla sayısı; FLOP = 2 × MAC."
    ),
    "Changes are against “{stage}”.": "Değişimler “{stage}” sütununa göredir.",
    "Latency: median ± interquartile range; batch size {batch}, CPU threads {threads}; {runs}.": (
        "Gecikme: medyan ± çeyrekler arası açıklık; yığın boyutu {batch}, CPU iş parçacığı {threads}; {runs}."
    ),
    "{n} runs": "{n} ölçüm",
    "* The machine was disturbed while this latency was measured.": (
        "* Bu gecikme ölçülürken makine başka işle meşguldü."
    ),
    "Latencies were measured under different conditions, so their change is not given.": (
        "Gecikmeler farklı koşullarda ölçüldüğü için değişimleri verilmedi."
    ),
    "Accuracy and loss on {samples} samples ({stages}).": "Doğruluk ve kayıp {samples} örnek üzerinde ({stages}).",
    # Budget
    "share removed": "çıkarılan pay",
    "asked": "istenen",
    "reached": "ulaşılan",
    "difference": "fark",
    "Channels": "Kanal",
    # Groups
    "group": "grup",
    "kind": "tür",
    "layers": "katman",
    "channels": "kanal",
    "before": "önce",
    "after": "sonra",
    "removed": "çıkarılan",
    "kept": "kalan",
    "indices removed": "çıkarılan dizinler",
    "indices removed: score": "çıkarılan dizinler: puan",
    "layer": "katman",
    "parameter": "parametre",
    "dimension": "boyut",
    "role": "rol",
    "none": "yok",
    "{count} in all": "toplam {count}",
    "{pruned} of {total} groups were pruned.": "{total} grubun {pruned} tanesi budandı.",
    "Unpruned groups: {count}.": "Budanmayan grup: {count}.",
    "Unpruned groups: {count} ({note}).": "Budanmayan grup: {count} ({note}).",
    "{count} more pruned groups are not shown here; a saved report lists them all.": (
        "Budanan {count} grup daha burada gösterilmedi; kaydedilen rapor hepsini listeler."
    ),
    "Indices are those of the original model; a higher score means keep.": (
        "Dizinler özgün modele göredir; yüksek puan “kalsın” demektir."
    ),
    "Long lists of indices are cut here; the JSON report has them whole.": (
        "Uzun dizin listeleri burada kısaltıldı; tamamı JSON raporundadır."
    ),
    "Scores of single units are in the JSON report: there are too many to list here.": (
        "Birimlerin tek tek puanları JSON raporundadır: burada listelenemeyecek kadar çoklar."
    ),
    "Highest score removed {removed}, lowest score kept {kept}.": (
        "Çıkarılan en yüksek puan {removed}, kalan en düşük puan {kept}."
    ),
    "No scores were recorded.": "Puan kaydedilmedi.",
    "No group was found that can be pruned.": "Budanabilecek bir grup bulunmadı.",
    "note": "not",
    "details": "ayrıntılar",
    # Frozen
    "reason": "neden",
    "{count} more reasons are not shown here; a saved report lists them all.": (
        "{count} neden daha burada gösterilmedi; kaydedilen rapor hepsini listeler."
    ),
    "Nothing was frozen.": "Hiçbir şey dondurulmadı.",
    # Proof
    "The pruned model equals the original with the removed channels masked.": (
        "Budanan model, çıkarılan kanalları maskelenmiş özgün modele eşittir."
    ),
    "The pruned model differs from the original with the removed channels masked.": (
        "Budanan model, çıkarılan kanalları maskelenmiş özgün modelden farklıdır."
    ),
    "Verification was switched off.": "Doğrulama kapatılmıştı.",
    "Largest relative error {error}, tolerance {tolerance}, {dtype}, {runs} random inputs, {seconds} s.": (
        "En büyük bağıl hata {error}, tolerans {tolerance}, {dtype}, {runs} rastgele girdi, {seconds} sn."
    ),
    "proven": "kanıtlandı",
    "failed": "başarısız",
    "not verified": "doğrulanmadı",
    # Figures
    "share of the original (%); accuracy: correct answers (%)": "özgün modele oran (%); doğruluk: doğru yanıtlar (%)",
    "MACs {macs}": "MAC {macs}",
    "MACs {macs}, accuracy {change}": "MAC {macs}, doğruluk {change}",
    "units kept (%)": "kalan birimler (%)",
    "group, in the order of the table": "grup, tablodaki sırayla",
    "No group lost a unit": "Hiçbir gruptan birim çıkarılmadı",
    "Every group keeps {share} of its units": "Her grup birimlerinin {share} kadarını koruyor",
    "Removed per group: {low} to {high}; most in {group}": "Grup başına çıkarılan: {low} – {high}; en çok: {group}",
    "Removed per group: {low} to {high}; most in {group} and {others} more": (
        "Grup başına çıkarılan: {low} – {high}; en çok: {group} ve {others} grup daha"
    ),
    "score (higher = keep)": "puan (yüksek = kalsın)",
    "units": "birim",
    "cut": "kesim",
    "scores overlap": "puanlar örtüşüyor",
    "{count} of {total} removed": "{total} içinden {count} çıkarıldı",
    "Each group: every removed unit scored below every kept one": (
        "Her grupta çıkarılan birimlerin puanı kalanların hepsinden düşük"
    ),
    "In {count} of {total} groups a unit was removed though a kept one scored lower": (
        "{total} grubun {count} tanesinde, daha düşük puanlı bir birim kalırken başka birim çıkarıldı"
    ),
    "epoch": "dönem",
    "loss": "kayıp",
    "accuracy (%)": "doğruluk (%)",
    "{shown} largest of {total} scored and pruned groups.": (
        "Puanlanan ve budanan {total} grubun en büyük {shown} tanesi."
    ),
    "Units kept per group": "Grup başına kalan birimler",
    "Score distributions": "Puan dağılımları",
    "Training curve": "Eğitim eğrisi",
}

# Words that reach the report as data. Unknown ones are shown as they came.
_TERMS = {
    "channels": "kanal",
    "heads": "dikkat başı",
    "head dimensions": "baş boyutu",
    "groups": "grup",
    "output": "çıkış",
    "input": "giriş",
    "params": "parametre",
    "macs": "MAC",
    "latency": "gecikme",
    "original": "özgün",
    "pruned": "budanmış",
    "repaired": "onarılmış",
    "recovered": "onarılmış",
    "fine-tuned": "ince ayarlı",
    "accuracy": "doğruluk",
    "loss": "kayıp",
    "train": "eğitim",
    "val": "doğrulama",
    "valid": "doğrulama",
    "validation": "doğrulama",
    "test": "sınama",
    "True": "evet",
    "False": "hayır",
    "model": "model",
    "criterion": "ölçüt",
    "importance": "önem ölçütü",
    "pruning ratio": "budama oranı",
    "target": "hedef",
    "scope": "kapsam",
    "global": "genel",
    "local": "yerel",
    "global pruning": "genel budama",
    "iterative steps": "adım sayısı",
    "layer pruning ratios": "katman budama oranları",
    "ignored layers": "dokunulmayan katmanlar",
    "max pruning ratio": "en yüksek budama oranı",
    "min channels": "en az kanal",
    "round to": "yuvarlama katı",
    "inplace": "yerinde",
    "verify": "doğrulama",
    "weight ratio": "ağırlık payı",
    "activation ratio": "aktivasyon payı",
    "calibration batches": "kalibrasyon yığını",
    "calibration samples": "kalibrasyon örneği",
    "num batches": "yığın sayısı",
    "seed": "rastgelelik tohumu",
    "device": "aygıt",
    "dataset": "veri kümesi",
    "data": "veri",
    "epochs": "dönem sayısı",
    "learning rate": "öğrenme oranı",
    "batch size": "yığın boyutu",
    "kept: not scored, no activation statistics reach it": "korundu: puanlanmadı, aktivasyon istatistiği ulaşmıyor",
}

# Reasons the engine gives, with the place they speak of; "it" is the dimension that was frozen.
_REASONS = {
    "the output of the model": "modelin çıktısı",
    "a dimension of size 1": "boyutu 1 olan bir eksen",
    "the other parts it must stay equal to cannot shrink": "eşit kalması gereken diğer parçalar küçülemiyor",
    "the forward does not follow a cut of it: {where}": "ileri geçiş bu eksenin kesilmesine uymuyor: {where}",
    "the vocabulary of {where}": "{where} sözlüğü",
    "the bias of {where}": "{where} sapması",
    "zeros added by {where}": "{where} eklediği sıfırlar",
    "no rule for the operation {where}": "{where} işlemi için kural yok",
    "groups of a convolution over repeated channels": "yinelenen kanallar üzerinde gruplu evrişim",
    "{where} combines it with something that cannot be pruned": "{where} onu budanamayan bir şeyle birleştiriyor",
    "{where} joins it with something that cannot be pruned": "{where} onu budanamayan bir şeye ekliyor",
    "{where} joins it with constants": "{where} onu sabitlere ekliyor",
    "{where} multiplies it with something that cannot be pruned": "{where} onu budanamayan bir şeyle çarpıyor",
    "{where} multiplies it with a constant": "{where} onu bir sabitle çarpıyor",
    "{where} reads something that cannot be pruned": "{where} budanamayan bir şeyi okuyor",
    "{where} normalises over it": "{where} onun üzerinden normalleştiriyor",
    "{where} computes statistics over it": "{where} onun üzerinden istatistik hesaplıyor",
    "{where} slides over it": "{where} onun üzerinde kayıyor",
    "{where} attends over it": "{where} onun üzerinde dikkat hesaplıyor",
    "{where} scales by the size of it": "{where} onun boyutuna göre ölçekliyor",
    "{where} repeats it": "{where} onu yineliyor",
    "{where} wraps it": "{where} onu sarıyor",
    "{where} crops it": "{where} onu kırpıyor",
    "{where} works on positions along it": "{where} onun üzerindeki konumlarla çalışıyor",
    "{where} picks from it by position": "{where} ondan konuma göre seçiyor",
    "{where} reads memory directly": "{where} belleği doğrudan okuyor",
    "{where} has a constant operand": "{where} sabit bir işlenen kullanıyor",
    "{where} has a weight that is not part of the graph": "{where} grafikte olmayan bir ağırlık kullanıyor",
}


def check_language(language: str) -> str:
    """The language itself when there is a report in it; raises `InputError` listing the choices otherwise."""
    if language not in LANGUAGES:
        raise InputError(f"language={language!r} is not one of {', '.join(map(repr, LANGUAGES))}.")
    return language


def say(language: str, phrase: str, **values: object) -> str:
    """A phrase of ours in the language, its placeholders filled; an untranslated phrase raises `KeyError`."""
    template = phrase if language == "en" else _TURKISH[phrase]
    return template.format(**values) if values else template


def term(language: str, word: str) -> str:
    """A word that came as data: translated when known, else unchanged."""
    return word if language == "en" else _TERMS.get(word) or _turkish_reason(word) or word


@functools.cache
def _reason_patterns() -> list[tuple[re.Pattern[str], str]]:
    patterns = ((re.escape(english).replace(r"\{where\}", "(?P<where>.+)"), text) for english, text in _REASONS.items())
    return [(re.compile(pattern, re.DOTALL), text) for pattern, text in patterns]


def _turkish_reason(reason: str) -> str | None:
    """One of the engine's reasons in Turkish, its place kept; None for any other text."""
    for pattern, text in _reason_patterns():
        found = pattern.fullmatch(reason)
        if found:
            return text.replace("{where}", found.groupdict().get("where") or "")
    return None


def percent(share: float | None, language: str = "en", digits: int = 1) -> str:
    """A share (1.0 = all) as a percentage; Turkish puts the sign first, a missing value is a dash."""
    if share is None:
        return MISSING
    return _with_percent_sign(_fixed(100 * share, digits), language)


def signed_percent(share: float | None, language: str = "en") -> str:
    """A relative change as a percentage with its sign; a missing value is a dash."""
    if share is None:
        return MISSING
    return _with_percent_sign(signed(100 * share, 1), language)


def signed(value: float, digits: int) -> str:
    """A number with its sign and fixed digits; what would round to zero keeps one digit instead of vanishing."""
    text = f"{value:+.{digits}f}"
    if value == 0:
        return text.lstrip("+-")
    return f"{value:+.1g}" if math.isfinite(value) and float(text) == 0 else text


def scaled(value: float) -> str:
    """A large count with four significant digits and an SI letter: 40.81 M, 4.089 G; small ones are exact: 5,120."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) < 10_000 and value == int(value):
        return f"{value:,.0f}"
    if abs(value) < 1000:
        return f"{value:.4g}"
    for factor, letter in ((1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T"), (1e15, "P")):
        scaled_value = float(f"{value / factor:.4g}")
        if abs(scaled_value) < 1000:
            return f"{significant(scaled_value)} {letter}"
    return f"{value:.3e}"


def short_number(value: float | None) -> str:
    """A number with four significant digits; a missing value is a dash."""
    return MISSING if value is None else f"{value:.4g}"


def significant(value: float, digits: int = 4) -> str:
    """A number with that many significant digits, trailing zeros kept: 51.00."""
    return f"{value:#.{digits}g}".rstrip(".")


def _fixed(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if math.isfinite(value) and float(text) == 0 else text


def _with_percent_sign(number: str, language: str) -> str:
    if language == "en":
        return f"{number} %"
    sign, digits = (number[0], number[1:]) if number[:1] in "+-" else ("", number)
    return f"{sign}%{digits}"
