"""The words of a report in English and Turkish, and how its numbers are written.

English phrases are their own keys, so the code reads as the report does. `say` is strict: a phrase without a
translation is a bug and raises. `term` is lenient: words that come from outside (a stage name, a reason, a setting) are
translated when they are known and shown unchanged otherwise.

    >>> say("tr", "Parameters")
    'Parametre'
    >>> term("tr", "my own stage")
    'my own stage'
    >>> percent(0.4957), percent(0.4957, "tr"), percent(None)
    ('49.6 %', '%49,6', '—')
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
    "Recovery": "Onarım",
    "This was proven after the cut; then the weights were repaired.": (
        "Bu, kesimden sonra kanıtlandı; ağırlıklar ondan sonra onarıldı."
    ),
    "BatchNorm statistics were collected anew.": "BatchNorm istatistikleri yeniden toplandı.",
    "Every layer's mean output was moved back to the original's.": (
        "Her katmanın ortalama çıktısı özgün modeldekine geri çekildi."
    ),
    "Every layer was solved anew by least squares, every block refined.": (
        "Her katman en küçük karelerle yeniden çözüldü, her blok ayrıca iyileştirildi."
    ),
    "Without labels or training, from {samples} samples in {seconds} s.": (
        "Etiket ve eğitim kullanılmadan, {samples} örnekle, {seconds} sn sürede."
    ),
    "Median squared error of {count} block outputs on samples that the repair did not see, in shares of their "
    "variance: {before} before, {after} after.": (
        "{count} blok çıktısının, onarımın görmediği örneklerdeki karesel hatasının ortancası (varyansa oranla): "
        "önce {before}, sonra {after}."
    ),
    "Not repaired: {layer} ({reason}).": "Onarılmadı: {layer} ({reason}).",
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
    "* The machine was disturbed while this latency was measured; changes from or to it are not given.": (
        "* Bu gecikme ölçülürken makine başka işle meşguldü; ona göre değişim verilmedi."
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
    # Residual blocks
    "Residual blocks": "Artık bloklar",
    "block": "blok",
    "parameter count": "parametre sayısı",
    "score": "puan",
    "outcome": "sonuç",
    "{removed} of {total} residual blocks were dropped; their input goes on in place of their output.": (
        "{total} artık bloğun {removed} tanesi çıkarıldı; çıktılarının yerine girdileri ilerliyor."
    ),
    "Channels inside a dropped block are gone with it: their groups keep none.": (
        "Çıkarılan bir bloğun içindeki kanallar onunla birlikte gitti: gruplarından hiçbiri kalmadı."
    ),
    "{count} more blocks are not shown here; a saved report lists them all.": (
        "{count} blok daha burada gösterilmedi; kaydedilen rapor hepsini listeler."
    ),
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
    "The pruned model equals the original with dropped blocks skipped and removed channels masked.": (
        "Budanan model, çıkarılan blokları atlanmış ve çıkarılan kanalları maskelenmiş özgün modele eşittir."
    ),
    "The pruned model is not the original with dropped blocks skipped and removed channels masked.": (
        "Budanan model, çıkarılan blokları atlanmış ve çıkarılan kanalları maskelenmiş özgün modelden farklıdır."
    ),
    "Verification was switched off.": "Doğrulama kapatılmıştı.",
    "Largest relative error {error}, tolerance {tolerance}, {dtype}, random inputs: {runs}, {seconds} s.": (
        "En büyük bağıl hata {error}, tolerans {tolerance}, {dtype}, rastgele girdi: {runs}, {seconds} sn."
    ),
    "proven": "kanıtlandı",
    "failed": "başarısız",
    "not verified": "doğrulanmadı",
    # Dependency graph
    "tensor": "tensör",
    "index": "dizin",
    "channel": "kanal",
    "show": "göster",
    "Hover over a node to see its shape, groups and tensors.": (
        "Biçimini, gruplarını ve tensörlerini görmek için fareyi bir düğümün üzerine getirin."
    ),
    "It stays: {reason}.": "Kalır: {reason}.",
    "The same share must go from each of the {count} parts of this group.": (
        "Bu grubun {count} parçasının her birinden aynı pay çıkmalıdır."
    ),
    "Channel {channel} of {layer}": "{layer} katmanı, {channel}. kanal",
    "group {number} ({name})": "{number}. grup ({name})",
    "operation": "işlem",
    "shape": "biçim",
    "dimension: labels": "boyut: etiketler",
    "Labels: what has the same number lives and dies together; 0 stays": (
        "Etiketler: aynı numarayı taşıyanlar birlikte kalır, birlikte gider; 0 hep kalır"
    ),
    "Labels as they start out and travel": "Etiketler, başladıkları ve taşındıkları halleriyle",
    "output {shape}": "çıkış {shape}",
    "{count} channels that stay": "kalıcı {count} kanal",
    "{count} channels of {group}": "{count} kanal: {group}",
    "inside: {group}": "içinde: {group}",
    "tensors: {names}": "tensörler: {names}",
    "stays (frozen)": "kalır (dondurulmuş)",
    "{nodes} nodes, {groups} groups: equal numbers shrink together": (
        "{nodes} düğüm, {groups} grup: aynı numaralar birlikte küçülür"
    ),
    "{nodes} nodes, {groups} group: equal numbers shrink together": (
        "{nodes} düğüm, {groups} grup: aynı numaralar birlikte küçülür"
    ),
    "{what}: it stays": "{what}: kalır",
    "{what}: {count} layers lose something": "{what}: {count} katman bir şey yitirir",
    "data flows downwards and to the right; a number is a group, in brackets its channels": (
        "veri aşağıya ve sağa akar; numara grubu, ayraç içindeki sayı kanal sayısını gösterir"
    ),
    "thick frame: loses channels; dashed frame: reads them; thick line: carries them": (
        "kalın çerçeve: kanal yitirir; kesikli çerçeve: onları okur; kalın çizgi: onları taşır"
    ),
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
    "removed share of the group (%)": "grubun çıkarılan payı (%)",
    "accuracy lost (points)": "yitirilen doğruluk (puan)",
    "output error ‖y′−y‖/‖y‖ (%)": "çıkış hatası ‖y′−y‖/‖y‖ (%)",
    "Most sensitive: {most}; least: {least}": "En duyarlı: {most}; en az duyarlı: {least}",
    "epoch": "dönem",
    "loss": "kayıp",
    "accuracy (%)": "doğruluk (%)",
    "MACs kept (%)": "kalan MAC (%)",
    "before pruning": "budamadan önce",
    "At {share} of the MACs, {label} is best on {won} of {total} networks ({panel}: {results}).": (
        "MAC {share} iken {total} ağın {won} tanesinde en iyisi {label} ({panel}: {results})."
    ),
    "At {share} of the MACs, {label} is best ({panel}: {results}).": (
        "MAC {share} iken en iyisi {label} ({panel}: {results})."
    ),
    "{shown} largest of {total} scored and pruned groups.": (
        "Puanlanan ve budanan {total} grubun en büyük {shown} tanesi."
    ),
    "mean ± standard deviation of {count} seeds": "{count} tohumun ortalaması ± standart sapması",
    "At the ratio {ratio} ({stage}): {results}.": "Budama oranı {ratio} iken ({stage}): {results}.",
    "Units kept per group": "Grup başına kalan birimler",
    "Score distributions": "Puan dağılımları",
    "Training curve": "Eğitim eğrisi",
    "Loss ({data})": "Kayıp ({data})",
    "Accuracy ({data})": "Doğruluk ({data})",
    # Criteria compared
    "{group}: of {count} units, all {criteria} criteria remove {all} and none removes {none}": (
        "{group}: {criteria} ölçütün hepsi {count} birimin aynı {all} tanesini çıkarıyor, {none} tanesine hiçbiri "
        "dokunmuyor"
    ),
    "Spearman's rank correlation": "Spearman sıra korelasyonu",
    "Rank agreement, all groups": "Sıralama uyumu, bütün gruplar",
    "removed in common (%); in brackets: by chance": "ortak çıkarılan (%); ayraç içinde: rastgele seçimde",
    "Ratio {ratio}, global": "Oran {ratio}, genel",
    "Ratio {ratio}, local": "Oran {ratio}, yerel",
    "every criterion takes the same share of every group": "her ölçüt her gruptan aynı payı alıyor",
    "most uneven is {criterion}, which takes {high} of {group} and {low} of {other}": (
        "en dengesizi {criterion}: {group} grubundan {high}, {other} grubundan {low} alıyor"
    ),
    "nothing to compare": "karşılaştıracak bir şey yok",
    "most alike {most}; least alike {least}": "en benzer {most}; en farklı {least}",
    "{criterion} does not see {group}": "{criterion} {group} grubunu görmüyor",
    "{first} and {second}: rank agreement {agreement}, {jaccard} removed in common (by chance {expected})": (
        "{first} ile {second}: sıralama uyumu {agreement}, ortak çıkarılan {jaccard} (rastgele seçimde {expected})"
    ),
    "removed ratio (%)": "çıkarılan oran (%)",
    "Best at {ratio}: {found}": "{ratio} oranında en iyisi: {found}",
    "Accuracy after the cut": "Kesimden sonra doğruluk",
    "Accuracy on {samples} samples; {accuracy} before pruning.": (
        "Doğruluk {samples} örnek üzerinde; budamadan önce {accuracy}."
    ),
    "coverage": "kapsama",
    "metric": "metrik",
    "α (weights)": "α (ağırlık)",
    # Panel of pruning
    "criterion": "ölçüt",
    "target": "hedef",
    "ranking": "sıralama",
    "repair": "onarım",
    "Apply": "Uygula",
    "number": "no",
    "pruned": "budanmış",
    "original": "özgün",
    "Applied so far": "Şimdiye dek uygulananlar",
    "Predicted for this choice": "Bu seçim için öngörülen",
    "Most accurate so far: {number} ({label}) with {accuracy} at {share} of the MACs": (
        "Şimdiye dek en doğrusu: {number} ({label}), MAC {share} iken {accuracy}"
    ),
    "pruning": "budama",
    "compared with": "karşılaştır",
    # Slides
    "Smallest loss without training: {loss} ({name})": "Eğitimsiz en küçük kayıp: {loss} ({name})",
    "Fine-tuned: {loss} ({name})": "İnce ayarla: {loss} ({name})",
    "Accuracy (%) by criterion and share of the MACs removed": "Ölçüte ve çıkarılan MAC payına göre doğruluk (%)",
    "Without training, {model} falls from {before} to {left} at best ({asked} removed)": (
        "Eğitim olmadan {model} en iyi durumda {before} değerinden {left} değerine düşüyor (çıkarılan: {asked})"
    ),
    "time {change}": "süre {change}",
    "accuracy {before} → {after}": "doğruluk {before} → {after}",
    "validation accuracy (%)": "doğrulama kümesinde doğruluk (%)",
    "test accuracy (%)": "sınama kümesinde doğruluk (%)",
    "{epochs} epochs win back {recovery} of what {method} lost: {drop} below the original": (
        "{epochs} dönem, yitirilenin {recovery} kadarını geri kazandırıyor ({method}): özgün modelin {drop} altında"
    ),
    "{epochs} epochs win back {recovery} of what {method} lost: {drop} above the original": (
        "{epochs} dönem, yitirilenin {recovery} kadarını geri kazandırıyor ({method}): özgün modelin {drop} üstünde"
    ),
    "{count} test images": "{count} sınama görüntüsü",
    "MACs removed": "çıkarılan MAC",
    "Best with {share} of the MACs gone: {best}": "MAC {share} azalınca en iyisi: {best}",
    "Best with {share} of the MACs gone: {best}; repaired without training: {repaired}": (
        "MAC {share} azalınca en iyisi: {best}; eğitimsiz onarımla: {repaired}"
    ),
    "At {share} of the MACs, {name} is at {repaired} (original: {before})": (
        "MAC {share} iken {name} doğruluğu {repaired} (özgün: {before})"
    ),
    "At {share} of the MACs, repair without training brings {name} from {plain} to {repaired} (original: {before})": (
        "MAC {share} iken eğitimsiz onarımla {name}: {plain} → {repaired} (özgün: {before})"
    ),
    "one-shot": "tek seferde",
    "iterative ({n} steps)": "yinelemeli ({n} adım)",
    "{winner} beats {loser} in {won} of {total} cuts; largest lead: {lead} ({criterion}, {share} of the MACs gone)": (
        "{winner} ve {loser}: {won}/{total} kesimde ilki daha iyi; en çok {lead} ({criterion}, MAC −{share})"
    ),
    "{winner} and {loser} win {won} of {total} cuts each; largest lead of {winner}: {lead} ({criterion}, {share} of "
    "the MACs gone)": (
        "{winner} ve {loser}: {total} kesimin {won} tanesi birinde, {won} tanesi ötekinde daha iyi; ilkinin en büyük "
        "farkı {lead} ({criterion}, MAC −{share})"
    ),
    "right: the lowest go": "doğru: en düşükler gider",
    "wrong: the highest go": "yanlış: en yüksekler gider",
    "channels of {layer}, by score": "{layer} kanalları, puan sırasıyla",
    "what goes (orange)": "ne gidiyor (turuncu)",
    "right way round": "doğru yön",
    "wrong sign": "ters işaret",
    "accuracy (%), {criterion}": "doğruluk (%), {criterion}",
    "One wrong sign: {share} of the MACs gone leave {wrong} instead of {right} (random: {random})": (
        "Tek bir ters işaret: MAC {share} azalınca {right} yerine {wrong} kalıyor (rastgele: {random})"
    ),
    "right after the cut": "kesimin hemen ardından",
    "BatchNorm renewed": "BatchNorm yenilenmiş",
    "{model}, {data}: {tests} test images; scores and repairs saw {calibration} training images; nothing was "
    "trained.": (
        "{model}, {data}: {tests} sınama görüntüsü; puanlar ve onarımlar {calibration} eğitim görüntüsü gördü; hiçbir "
        "eğitim yapılmadı."
    ),
    "Random: the mean of up to {seeds} draws.": "Rastgele: en çok {seeds} çekilişin ortalaması.",
    # Documents of experiments: cover
    "Pruning experiment {scenario}: {method}": "{scenario} budama deneyi: {method}",
    "Pruning experiment {scenario}: comparison of methods": "{scenario} budama deneyi: yöntemlerin karşılaştırması",
    "{model} on {data}": "{data} üzerinde {model}",
    "Contents": "İçindekiler",
    "Table": "Tablo",
    "Figure": "Şekil",
    "Scenario": "Senaryo",
    "Model": "Model",
    "weights": "ağırlıklar",
    "Data set": "Veri kümesi",
    "{n} classes": "{n} sınıf",
    "Images": "Görüntüler",
    "training {train}, calibration {calibration}, validation {validation}, test {test}": (
        "eğitim {train}, kalibrasyon {calibration}, doğrulama {validation}, sınama {test}"
    ),
    "Method": "Yöntem",
    "Methods": "Yöntemler",
    "Pruning ratio": "Budama oranı",
    "{share} of the channels": "kanalların {share} kadarı",
    "{share} of the parameters": "parametrelerin {share} kadarı",
    "{share} of the MACs": "MAC sayısının {share} kadarı",
    "{share} of the latency": "gecikmenin {share} kadarı",
    "layer by layer (local)": "katman katman (yerel)",
    "all layers ranked together (global)": "bütün katmanlar birlikte sıralanarak (genel)",
    "in one step": "tek adımda",
    "in {n} steps": "{n} adımda",
    "Date": "Tarih",
    "Seed": "Rastgelelik tohumu",
    "Command": "Komut",
    # Documents of experiments: methods and stages
    "method": "yöntem",
    "neuron coverage": "nöron kapsaması",
    "adaptive neuron coverage": "uyarlamalı nöron kapsaması",
    "WANDA": "WANDA",
    "magnitude": "ağırlık büyüklüğü",
    "Taylor": "Taylor",
    "random": "rastgele",
    "Original": "Özgün",
    "Original (FT)": "Özgün (İA)",
    "After pruning": "Budama sonrası",
    "After pruning + FT": "Budama + İA sonrası",
    "Before fine-tuning": "İnce ayardan önce",
    "After fine-tuning": "İnce ayardan sonra",
    # Documents of experiments: sections
    "Summary": "Özet",
    "Comparison": "Karşılaştırma",
    "Accuracy against cost": "Maliyete karşı doğruluk",
    "Preparation of the original model": "Özgün modelin hazırlanması",
    "Preparation": "Hazırlık",
    "Pruning": "Budama",
    "Fine-tuning": "İnce ayar",
    "Fine-tuning after {method}": "İnce ayar ({method})",
    "Method: {method}": "Yöntem: {method}",
    "Configuration": "Yapılandırma",
    "Environment and seeds": "Çalışma ortamı ve rastgelelik",
    "Files": "Dosyalar",
    # Documents of experiments: sentences
    "Pruning by {method} removed {channels} of the channels: {parameters} of the parameters, {flops} of the FLOPs "
    "and {size} of the size are gone.": (
        "Budama ({method}) kanalların {channels} kadarını çıkardı; parametre sayısı {parameters}, FLOP sayısı {flops}, "
        "model boyutu {size} azaldı."
    ),
    "On {samples} test images the accuracy was {before} before pruning and {after} right after it.": (
        "{samples} sınama görüntüsünde doğruluk budamadan önce {before}, budamanın hemen ardından {after} oldu."
    ),
    "Fine-tuning brought it to {accuracy}.": "İnce ayardan sonra doğruluk {accuracy} oldu.",
    "Fine-tuning brought it to {accuracy} and so won back {recovery} of what had been lost.": (
        "İnce ayardan sonra doğruluk {accuracy} oldu; böylece yitirilenin {recovery} kadarı geri kazanıldı."
    ),
    "That equals the original.": "Bu, özgün modelin doğruluğuna eşittir.",
    "That is {points} below the original.": "Bu, özgün modelin {points} altındadır.",
    "That is {points} above the original.": "Bu, özgün modelin {points} üzerindedir.",
    "The speed-up of one call with batch size {batch} is {speedup}.": (
        "Yığın boyutu {batch} iken tek çağrıdaki hızlanma {speedup}."
    ),
    "The pruned model was not fine-tuned.": "Budanan modele ince ayar yapılmadı.",
    "Nothing was pruned.": "Hiçbir şey budanmadı.",
    "First weights: {weights}.": "İlk ağırlıklar: {weights}.",
    "The original model was not trained further.": "Özgün model ayrıca eğitilmedi.",
    "{n} epochs of training.": "Eğitim {n} dönem sürdü.",
    "It took {seconds} s.": "Süre: {seconds} sn.",
    "The validation accuracy was best in epoch {epoch}.": "Doğrulama kümesindeki en iyi doğruluk {epoch}. dönemdedir.",
    "It was stopped early: the validation accuracy no longer rose.": (
        "Erken durduruldu: doğrulama kümesindeki doğruluk artık yükselmiyordu."
    ),
    "A share of {share} of the loss followed the outputs of the unpruned model (distillation).": (
        "Kaybın {share} kadarı budanmamış modelin çıktılarını izledi (bilgi damıtma)."
    ),
    "Best right after pruning: {methods} with {accuracy} (original: {original})": (
        "Budamanın hemen ardından en iyisi: {methods}, {accuracy} (özgün: {original})"
    ),
    "Best after fine-tuning: {methods} with {accuracy} (original: {original})": (
        "İnce ayardan sonra en iyisi: {methods}, {accuracy} (özgün: {original})"
    ),
    # Documents of experiments: tables
    "The original model": "Özgün model",
    "The original model before and after its fine-tuning": "İnce ayardan önce ve sonra özgün model",
    "Accuracy (%)": "Doğruluk (%)",
    "Parameters ({unit})": "Parametre ({unit})",
    "Trainable parameters ({unit})": "Eğitilebilir parametre ({unit})",
    "Size (MB)": "Boyut (MB)",
    "FLOPs ({unit})": "FLOP ({unit})",
    "Inference time (ms)": "Çıkarım süresi (ms)",
    "Comparison of the stages: {method}": "Aşamaların karşılaştırması: {method}",
    "FT: fine-tuning. MB = 10^6 bytes; FLOPs = 2 × MACs of one call on the example inputs.": (
        "İA: ince ayar. MB = 10^6 bayt; FLOP = örnek girdilerle bir çağrıdaki MAC sayısının 2 katı."
    ),
    "Savings and costs: {method}": "Kazanç ve kayıplar: {method}",
    "value": "değer",
    "Parameter reduction": "Parametre azalması",
    "Size reduction": "Boyut azalması",
    "FLOPs reduction": "FLOP azalması",
    "Speed-up": "Hızlanma",
    "Accuracy lost by pruning": "Budamada yitirilen doğruluk",
    "Recovery by fine-tuning": "İnce ayarla geri kazanılan",
    "Final drop in accuracy": "Son doğruluk kaybı",
    "Final drop (points)": "Son kayıp (puan)",
    "Recovery: the share of the accuracy lost by pruning that fine-tuning won back.": (
        "Geri kazanılan: budamada yitirilen doğruluğun ince ayarla geri gelen payı."
    ),
    "A negative drop is a gain.": "Eksi kayıp, kazanç demektir.",
    "The methods compared": "Yöntemlerin karşılaştırması",
    "†: the best value of the column.": "†: sütunun en iyi değeri.",
    "FT: fine-tuning. Reductions and speed-up against the original; accuracies in %.": (
        "İA: ince ayar. Azalmalar ve hızlanma özgün modele göredir; doğruluklar % olarak."
    ),
    "No speed-up is given where times were not measured or cannot be compared.": (
        "Süreler ölçülmediyse ya da karşılaştırılamıyorsa hızlanma verilmedi."
    ),
    "Files made": "Oluşturulan dosyalar",
    "name": "ad",
    "path": "yol",
    "Paths are relative to the folder of the results.": "Yollar, sonuçların bulunduğu klasöre göredir.",
    "Versions": "Sürümler",
    "Machine": "Makine",
    "Device": "Aygıt",
    "CPU threads": "CPU iş parçacığı",
    "Processes": "Süreç sayısı",
    "Time: {method}": "Süre: {method}",
    "{stage}: {seconds} s": "{stage}: {seconds} sn",
    # Several experiments, and groups
    "The experiments compared": "Deneylerin karşılaştırması",
    "experiment": "deney",
    "ratio": "oran",
    "local": "yerel",
    "global": "genel",
    "BatchNorm anew": "BatchNorm yeniden",
    "mean outputs restored": "ortalama çıktılar geri çekildi",
    "least squares": "en küçük kareler",
    "{experiment}: accuracy in % on {samples} test images.": (
        "{experiment}: doğruluk {samples} sınama görüntüsünde, % olarak."
    ),
    "Local: this share of every group; global: all channels ranked together.": (
        "Yerel: her gruptan bu pay; genel: bütün kanallar birlikte sıralanır."
    ),
    "removed by {method}": "{method} çıkardı",
    "removed by both": "ikisi de çıkardı",
    "expected by chance": "rastgele seçimde beklenen",
    "{first} and {second} chose {shared} of {removed} channels alike; blind choices would share {chance}": (
        "{first} ile {second}, çıkardıkları {removed} kanalın {shared} tanesinde birleşti; rastgele iki seçimde bu "
        "sayı {chance} olurdu"
    ),
    "What was measured: {experiment}": "Ne ölçüldü: {experiment}",
    "{scenario} takes {least} to {most} of a group": "{scenario} bir grubun {least}–{most} kadarını alıyor",
    # Documents of experiments: figures
    "Costs as shares of the original, and accuracy, in each stage.": (
        "Her aşamada özgün modele oranla maliyetler ve doğruluk."
    ),
    "Accuracy against the share of the FLOPs that is kept. A hollow mark is a pruned model, a filled one the same "
    "after fine-tuning.": (
        "Kalan FLOP payına karşı doğruluk. İçi boş imler budanan modeli, dolu olanlar aynı modelin ince ayardan "
        "sonraki durumunu gösterir."
    ),
    "{training}: loss and accuracy by epoch.": "{training}: dönemlere göre kayıp ve doğruluk.",
    "The share of its channels that each group of layers keeps.": "Her katman grubunda kalan kanalların payı.",
    "Scores of the removed and the kept channels in the largest groups, and the cut.": (
        "En büyük gruplarda çıkarılan ve kalan kanalların puanları ile aralarındaki kesim."
    ),
    "Accuracy of each method right after pruning and after fine-tuning.": (
        "Her yöntemin budamanın hemen ardından ve ince ayardan sonraki doğruluğu."
    ),
    "FLOPs kept (%)": "kalan FLOP (%)",
    "{method}, just pruned: {accuracy} at {share} of the FLOPs (original: {original})": (
        "{method}, yalnız budanmış: FLOP {share} iken {accuracy} (özgün: {original})"
    ),
    "{method}, fine-tuned: {accuracy} at {share} of the FLOPs (original: {original})": (
        "{method}, ince ayarlı: FLOP {share} iken {accuracy} (özgün: {original})"
    ),
    # Documents of experiments: settings
    "Settings: model, data and training": "Ayarlar: model, veri ve eğitim",
    "Settings: scores and pruning": "Ayarlar: puanlar ve budama",
    "Settings: fine-tuning after pruning": "Ayarlar: budamadan sonraki ince ayar",
    "Settings: methods and measurements": "Ayarlar: yöntemler ve ölçümler",
    "Settings: machine (they change no result)": "Ayarlar: makine (sonuçları değiştirmezler)",
    "setting": "ayar",
    "name for --set": "--set için adı",
    "scenario": "senaryo",
    "profile": "profil",
    "model": "model",
    "data set": "veri kümesi",
    "first weights": "ilk ağırlıklar",
    "training images": "eğitim görüntüleri",
    "validation images": "doğrulama görüntüleri",
    "test images": "sınama görüntüleri",
    "seed": "rastgelelik tohumu",
    "epochs of the preparation": "hazırlıkta dönem sayısı",
    "learning rate of the preparation": "hazırlıkta öğrenme oranı",
    "batch size": "yığın boyutu",
    "optimiser": "eniyileyici",
    "momentum": "momentum",
    "weight decay": "ağırlık sönümü",
    "learning rate schedule": "öğrenme oranı planı",
    "warm-up epochs": "ısınma dönemleri",
    "label smoothing": "etiket yumuşatma",
    "largest gradient norm": "en büyük gradyan normu",
    "batches per step": "adım başına yığın",
    "number precision": "sayı duyarlığı",
    "patience of early stopping": "erken durdurma sabrı",
    "weights kept at the end": "sonda saklanan ağırlıklar",
    "methods": "yöntemler",
    "pruning ratio": "budama oranı",
    "what the ratio is of": "oranın neye göre olduğu",
    "all layers ranked together": "bütün katmanları birlikte sıralama",
    "layers of one structure ranked together": "eşyapılı katmanları birlikte sıralama",
    "steps": "adım sayısı",
    "schedule of the steps": "adım planı",
    "metric of coverage": "kapsama ölçüsü",
    "threshold of coverage": "kapsama eşiği",
    "calibration batches": "kalibrasyon yığını sayısı",
    "calibration batch size": "kalibrasyon yığın boyutu",
    "source of the calibration images": "kalibrasyon görüntülerinin kaynağı",
    "highest ratio of a group": "bir grubun en yüksek oranı",
    "fewest channels of a group": "bir grubun en az kanalı",
    "kept channels are a multiple of": "kalan kanalların katı olduğu sayı",
    "repair without training": "eğitimsiz onarım",
    "untouched layers": "dokunulmayan katmanlar",
    "epochs of fine-tuning": "ince ayarda dönem sayısı",
    "learning rate of fine-tuning": "ince ayarda öğrenme oranı",
    "weight of distillation": "bilgi damıtma ağırlığı",
    "temperature of distillation": "bilgi damıtma sıcaklığı",
    "evaluation batches": "değerlendirme yığınları",
    "batch size of the timed call": "süresi ölçülen çağrının yığın boyutu",
    "seconds of timing": "süre ölçümünün saniyesi",
    "epochs between checkpoints": "kontrol noktaları arasındaki dönem",
    "minutes between saved states": "durum kayıtları arasındaki dakika",
    "device": "aygıt",
    "loading processes": "yükleyen süreç sayısı",
    "language": "dil",
}

# Words that reach the report as data. Unknown ones are shown as they came.
_TERMS = {
    "none": "yok",
    "batchnorm": "BatchNorm",
    "bias": "sapma (bias)",
    "least_squares": "en küçük kareler",
    "coverage: normalized mean": "kapsama: normalize ortalama",
    "coverage: frequency": "kapsama: sıklık",
    "coverage: mean |x|": "kapsama: ortalama |x|",
    "coverage: combined": "kapsama: birleşik",
    "normalized mean": "normalize ortalama",
    "frequency": "sıklık",
    "mean |x|": "ortalama |x|",
    "combined": "birleşik",
    "weight + activation": "ağırlık + aktivasyon",
    "magnitude": "ağırlık büyüklüğü",
    "random": "rastgele",
    "activation": "aktivasyon",
    "no repair": "onarımsız",
    "BatchNorm": "BatchNorm onarımı",
    "biases": "sapma onarımı",
    "least squares": "en küçük kareler onarımı",
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
    "original (fine-tuned)": "özgün (ince ayarlı)",
    "pruned and fine-tuned": "budanmış ve ince ayarlı",
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
    "isomorphic": "eşyapılı grupları birlikte sırala",
    "cost aware": "maliyete göre sırala",
    "schedule": "adım planı",
    "linear": "doğrusal",
    "geometric": "geometrik",
    "cubic": "kübik",
    "one_shot": "tek seferde",
    "layer pruning ratios": "katman budama oranları",
    "ignored layers": "dokunulmayan katmanlar",
    "depth pruning ratio": "derinlik budama oranı",
    "drop layers": "çıkarılacak katmanlar",
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
    "verification was switched off": "doğrulama kapatılmıştı",
}

# Reasons and notes the engine gives, with the place they speak of; "it" is the dimension that was frozen. Placeholders
# in capitals are translated themselves: PLACE is an operation and its module, TEXT another of these sentences.
_REASONS = {
    # Said by recovery
    "not called exactly once in a forward": "bir ileri geçişte tam olarak bir kez çağrılmıyor",
    "the model has no BatchNorm with running statistics": "modelde istatistik tutan BatchNorm yok",
    "its kept channels are not known": "kalan kanalları bilinmiyor",
    "its block's kept channels are not known": "bloğunun kalan kanalları bilinmiyor",
    "it has no bias, and no BatchNorm follows": "sapması yok ve ardından BatchNorm gelmiyor",
    "its kept outputs are not known, or it is not called once": (
        "kalan çıktıları bilinmiyor ya da tam olarak bir kez çağrılmıyor"
    ),
    "its weight is shared with another layer": "ağırlığı başka bir katmanla ortak",
    "it reads another shape than in the original network": "özgün ağdakinden başka bir biçim okuyor",
    # Said by the rules of the operations
    "the output of the model": "modelin çıktısı",
    "a dimension of size 1": "boyutu 1 olan bir eksen",
    "the vocabulary of {PLACE}": "{PLACE} işleminin sözlüğü",
    "the kernel of {PLACE}": "{PLACE} işleminin çekirdeği",
    "the bias of {PLACE}": "{PLACE} işleminin sapması",
    "no rule for the operation {PLACE}": "{PLACE} işlemi için kural yok",
    "groups of a convolution over repeated channels": "yinelenen kanallar üzerinde gruplu evrişim",
    "{PLACE} combines it with something that cannot be pruned": (
        "{PLACE} işlemi onu budanamayan bir şeyle birleştiriyor"
    ),
    "{PLACE} combines it with the input of the model": "{PLACE} işlemi onu modelin girdisiyle birleştiriyor",
    "{PLACE} joins it with something that cannot be pruned": "{PLACE} işlemi onu budanamayan bir şeye ekliyor",
    "{PLACE} joins it with the input of the model": "{PLACE} işlemi onu modelin girdisine ekliyor",
    "{PLACE} joins it with constants": "{PLACE} işlemi onu sabitlere ekliyor",
    "{PLACE} multiplies it with something that cannot be pruned": "{PLACE} işlemi onu budanamayan bir şeyle çarpıyor",
    "{PLACE} multiplies it with the input of the model": "{PLACE} işlemi onu modelin girdisiyle çarpıyor",
    "{PLACE} reads something that cannot be pruned": "{PLACE} işlemi budanamayan bir şeyi okuyor",
    "{PLACE} reads the input of the model": "{PLACE} işlemi modelin girdisini okuyor",
    "{PLACE} reads something that cannot be pruned, group by group": (
        "{PLACE} işlemi budanamayan bir şeyi grup grup okuyor"
    ),
    "{PLACE} reads the input of the model, group by group": "{PLACE} işlemi modelin girdisini grup grup okuyor",
    "{PLACE} orders it": "{PLACE} işlemi onu sıralıyor",
    "{PLACE} computes statistics over it": "{PLACE} işlemi onun üzerinden istatistik hesaplıyor",
    "{PLACE} slides over it": "{PLACE} işlemi onun üzerinde kayıyor",
    "{PLACE} scales by the size of it": "{PLACE} işlemi onun boyutuna göre ölçekliyor",
    "{PLACE} wraps it": "{PLACE} işlemi onu başa sarıyor",
    "{PLACE} crops it": "{PLACE} işlemi onu kırpıyor",
    "{PLACE} rolls over all dimensions at once": "{PLACE} işlemi bütün eksenleri birden kaydırıyor",
    "{PLACE} works on positions along it": "{PLACE} işlemi onun üzerindeki konumlarla çalışıyor",
    "{PLACE} picks from it by position": "{PLACE} işlemi ondan konuma göre seçiyor",
    "{PLACE} takes one of every {step} of it, which does not divide {size}": (
        "{PLACE} işlemi onun her {step} öğesinden birini alıyor, bu da {size} sayısını bölmüyor"
    ),
    "{PLACE} reads memory directly": "{PLACE} işlemi belleği doğrudan okuyor",
    "{PLACE} writes to a part of it": "{PLACE} işlemi onun bir parçasına yazıyor",
    "{PLACE} writes it to a single place": "{PLACE} işlemi onu tek bir yere yazıyor",
    "the rule of {PLACE} does not tie it": "{PLACE} işleminin kuralı onu hiçbir şeye bağlamıyor",
    "a cut of it changes what follows {PLACE}": "kesilmesi {PLACE} işleminden sonrasını değiştiriyor",
    "{PLACE} has a constant operand": "{PLACE} işlemi sabit bir işlenen kullanıyor",
    "{PLACE} has a weight that is not part of the graph": "{PLACE} işlemi çizgede olmayan bir ağırlık kullanıyor",
    # Said of groups as a whole
    "the other parts it must stay equal to cannot shrink": "eşit kalması gereken diğer parçalar küçülemiyor",
    "none of the dimensions it is split into can shrink": "bölündüğü eksenlerin hiçbiri küçülemiyor",
    "cut along another axis: whole heads or groups, or the same share of each": (
        "başka bir eksen boyunca kesiliyor: bütün başlar ya da gruplar, veya her birinden aynı pay"
    ),
    "there is only one of it": "ondan yalnızca bir tane var",
    "its parts must shrink alike and have no common step": "parçaları birlikte küçülmeli, ama ortak bir adımları yok",
    "it reaches the ignored layer {layer}": "dokunulmayan {layer} katmanına ulaşıyor",
    # Said by experiments
    "the data has no training images: nothing was trained, neither before nor after pruning": (
        "veride eğitim görüntüsü yok: budamadan önce de sonra da eğitim yapılmadı"
    ),
    "the first weights were trained on all training images, those for validation and calibration included": (
        "ilk ağırlıklar, doğrulama ve kalibrasyon için ayrılanlar dahil bütün eğitim görüntüleriyle eğitilmişti"
    ),
    # Said after a cut was tried
    "the forward does not follow a cut of it: {TEXT}": "ileri geçiş bu eksenin kesilmesine uymuyor: {TEXT}",
    "{TEXT}: the forward took another path ({operation})": "{TEXT}: ileri geçiş başka bir yol izledi ({operation})",
    "the forward took another path ({count} operations, not {wanted})": (
        "ileri geçiş başka bir yol izledi ({wanted} yerine {count} işlem)"
    ),
    "{PLACE}: its result has the shape {shape}, {wanted} was expected": (
        "{PLACE}: sonucunun biçimi {shape}, beklenen {wanted}"
    ),
    "{PLACE}: its argument {name} is {value}, {wanted} was expected": (
        "{PLACE}: {name} bağımsız değişkeni {value}, beklenen {wanted}"
    ),
    "{PLACE}: its argument {name} changed from {before} to {after}": (
        "{PLACE}: {name} bağımsız değişkeni {before} iken {after} oldu"
    ),
    "{PLACE}: it starts at {count}, {wanted} was expected": "{PLACE}: {count} konumunda başlıyor, beklenen {wanted}",
    "{TEXT}; an output has the shape {shape}, {wanted} was expected": (
        "{TEXT}; bir çıktının biçimi {shape}, beklenen {wanted}"
    ),
    "{TEXT}; {name} has {count} indices in dimension {axis}, {wanted} were expected": (
        "{TEXT}; {name} parametresinin {axis}. boyutunda {count} dizin var, beklenen {wanted}"
    ),
    "{TEXT}; it computes with other numbers": "{TEXT}; başka sayılarla hesaplıyor",
    "{TEXT}; it connects other channels than before": "{TEXT}; öncekinden başka kanalları bağlıyor",
    "{TEXT}; it uses {name}, which it did not before": "{TEXT}; önceden kullanmadığı {name} parametresini kullanıyor",
    "the training forward breaks off there: {TEXT}": "eğitim kipindeki ileri geçiş orada kesiliyor: {TEXT}",
    # Said of an experiment's data and first weights
    "the calibration images are test images, so the scores have seen what they are judged on": (
        "kalibrasyon görüntüleri sınama görüntüleridir; puanlar, sınanacakları görüntüleri önceden görmüştür"
    ),
    "there are {count} calibration images, {asked} were asked for": (
        "{count} kalibrasyon görüntüsü var, {asked} tane istenmişti"
    ),
    "the NIPS-2017 photos are not ImageNet's images, and easier than its validation images": (
        "NIPS-2017 fotoğrafları ImageNet görüntüleri değildir ve onun doğrulama görüntülerinden kolaydır"
    ),
    "{count} of ImageNet's 1000 classes occur, and the model chooses among all": (
        "ImageNet'in 1000 sınıfından {count} tanesi geçiyor, model ise hepsi arasından seçiyor"
    ),
    "the class folders are not named by the WordNet ids of ImageNet's 1000 classes: classes count by name": (
        "sınıf klasörlerinin adları ImageNet'in 1000 sınıfının WordNet kimlikleri değil: sınıflar ada göre sıralandı"
    ),
    "{count} of {total} tensors from torchvision's ImageNet weights ({file})": (
        "{total} tensörün {count} tanesi torchvision'ın ImageNet ağırlıklarından ({file})"
    ),
    "of the trained {old} kernels of {name}, the {new} in the middle": (
        "{name} için eğitilmiş {old} çekirdeklerin ortasındaki {new} kısmı"
    ),
    "new and untrained: {names}": "yeni ve eğitilmemiş: {names}",
    "weights of {file}": "{file} dosyasındaki ağırlıklar",
    "trained weights ({file})": "eğitilmiş ağırlıklar ({file})",
    "untrained, initialised with seed {seed}": "eğitilmemiş, {seed} tohumuyla ilklendirilmiş",
    "Or start without trained weights: --set weights=none": (
        "Eğitilmiş ağırlıklar olmadan başlamak için: --set weights=none"
    ),
    # Notes and warnings of the run
    "example_inputs do not reach {layers}, neither in evaluation nor in training ({TEXT}): these layers are left "
    "whole, and break if what they read elsewhere is cut; give example inputs that reach them": (
        "example_inputs, ne değerlendirmede ne de eğitimde ({TEXT}) {layers} katmanına ulaşıyor: bu katmanlar bütün "
        "bırakıldı; başka yerde okudukları kesilirse bozulurlar. Onlara ulaşan örnek girdiler verin"
    ),
    "example_inputs do not reach {layers}, neither in evaluation nor in training: these layers are left whole, "
    "and break if what they read elsewhere is cut; give example inputs that reach them": (
        "example_inputs, ne değerlendirmede ne de eğitimde {layers} katmanına ulaşıyor: bu katmanlar bütün bırakıldı; "
        "başka yerde okudukları kesilirse bozulurlar. Onlara ulaşan örnek girdiler verin"
    ),
    "kept: the model does not run without it: {TEXT}": "korundu: model onsuz çalışmıyor: {TEXT}",
    "{layer} is not called through its place in the model": "{layer}, modeldeki yeri üzerinden çağrılmıyor",
    "residual blocks were dropped whole": "artık bloklar bütünüyle çıkarıldı",
    "{count} of them went with a dropped block": "{count} tanesi çıkarılan bir blokla birlikte gitti",
    "kept: not scored, the criterion does not see it": "korundu: puanlanmadı, ölçüt onu görmüyor",
    "kept whole, the criterion does not see them: {names}": "bütün kaldılar, ölçüt onları görmüyor: {names}",
    "groups shrink by whole units only": "gruplar ancak bütün birimlerle küçülür",
    "no group can be pruned": "budanabilecek bir grup yok",
    "layer_pruning_ratios ask for other shares": "katman budama oranları (layer_pruning_ratios) başka paylar istiyor",
    "max_pruning_ratio holds groups back": "en yüksek budama oranı (max_pruning_ratio) grupları tutuyor",
    "min_channels holds groups back": "en az kanal sayısı (min_channels) grupları tutuyor",
    "round_to keeps multiples": "yuvarlama katı (round_to) korunuyor",
    "some groups were not scored": "bazı gruplar puanlanmadı",
    "latency timed in {n} pairs with the original, IQR {x}": (
        "gecikme, özgün modelle birlikte {n} çift ölçümle bulundu; çeyrekler arası açıklık {x}"
    ),
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


def count_things(count: int, one: str, many: str = "") -> str:
    """A number with its English word: "1 group", "2 groups"; ``many`` where the plural is not made by an s."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def term(language: str, word: str) -> str:
    """A word that came as data: translated when known, else unchanged."""
    return word if language == "en" else _TERMS.get(word) or _turkish_reason(word) or word


def terms(language: str, text: str) -> str:
    """Several words or sentences that came as data, separated by semicolons, each translated when it is known."""
    return "; ".join(term(language, part) for part in text.split("; ")) if text else text


@functools.cache
def _reason_patterns() -> list[tuple[re.Pattern[str], str]]:
    patterns = []
    for english, turkish in _REASONS.items():
        pattern = re.sub(r"\\{(\w+)\\}", _reason_part, re.escape(english))
        patterns.append((re.compile(pattern, re.DOTALL), turkish))
    return patterns


def _reason_part(placeholder: re.Match[str]) -> str:
    name = placeholder[1]
    return f"(?P<{name}>" + (r"\(.*?\)" if name == "shape" else ".+?") + ")"  # a shape holds commas of its own


def _turkish_reason(reason: str) -> str | None:
    """One of the engine's reasons in Turkish, its places kept; None for any other text."""
    for pattern, turkish in _reason_patterns():
        found = pattern.fullmatch(reason)
        if found:
            values = {name: _turkish_value(name, value) for name, value in found.groupdict().items()}
            return turkish.format(**values)
    return None


def _turkish_value(name: str, value: str) -> str:
    if name == "TEXT":
        return _turkish_reason(value) or _turkish_value("PLACE", value)
    return re.sub(r"^(\w+) in (\S+)$", r"\2 içindeki \1", value) if name == "PLACE" else value


def percent(share: float | None, language: str = "en", digits: int = 1) -> str:
    """A share (1.0 = all) as a percentage; Turkish puts the sign first, a missing value is a dash."""
    if share is None:
        return MISSING
    return _with_percent_sign(_fixed(100 * share, digits), language)


def signed_percent(share: float | None, language: str = "en") -> str:
    """A relative change as a percentage with its sign; a missing value is a dash."""
    if share is None:
        return MISSING
    return _with_percent_sign(_signed(100 * share, 1), language)


def signed(value: float, digits: int, language: str = "en") -> str:
    """A number with its sign and fixed digits; what would round to zero keeps one digit instead of vanishing."""
    return local_number(_signed(value, digits), language)


def scaled(value: float, language: str = "en") -> str:
    """A large count with four significant digits and an SI letter: 40.81 M, 4.089 G; small ones are exact: 5,120."""
    return local_number(_scaled(value), language)


def whole_number(value: int, language: str = "en") -> str:
    """A whole number with its thousands apart: 269,722."""
    return local_number(f"{value:,}", language)


def short_number(value: float | None, language: str = "en") -> str:
    """A number with four significant digits; a missing value is a dash."""
    return MISSING if value is None else local_number(f"{value:.4g}", language)


def significant(value: float, digits: int = 4, language: str = "en") -> str:
    """A number with that many significant digits, trailing zeros kept: 51.00."""
    return local_number(_significant(value, digits), language)


def local_number(number: str, language: str) -> str:
    """An English number as the language writes it: Turkish has the comma and the point the other way round."""
    return number if language == "en" else number.translate(_SWAPPED)


_SWAPPED = str.maketrans(".,", ",.")


def _signed(value: float, digits: int) -> str:
    text = f"{value:+.{digits}f}"
    if value == 0:
        return text.lstrip("+-")
    return f"{value:+.1g}" if math.isfinite(value) and float(text) == 0 else text


def _scaled(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    if abs(value) < 10_000 and value == int(value):
        return f"{value:,.0f}"
    if abs(value) < 1000:
        return f"{value:.4g}"
    for factor, letter in ((1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T"), (1e15, "P")):
        scaled_value = float(f"{value / factor:.4g}")
        if abs(scaled_value) < 1000:
            return f"{_significant(scaled_value, 4)} {letter}"
    return f"{value:.3e}"


def _significant(value: float, digits: int) -> str:
    return f"{value:#.{digits}g}".rstrip(".")


def _fixed(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if math.isfinite(value) and float(text) == 0 else text


def _with_percent_sign(number: str, language: str) -> str:
    if language == "en":
        return f"{number} %"
    sign, digits = (number[0], number[1:]) if number[:1] in "+-" else ("", number)
    return f"{sign}%{local_number(digits, language)}"
