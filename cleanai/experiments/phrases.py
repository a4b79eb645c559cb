"""What an experiment says while it runs, in Turkish."""

from __future__ import annotations

TURKISH = {
    "{command}": "{command}",
    "  {path}": "  {path}",
    "\n{results}\n": "\n{results}\n",
    "Loading {data}": "{data} yükleniyor",
    "Prepared already: {path}": "Daha önce hazırlanmış: {path}",
    "Measuring the model with its first weights": "Model ilk ağırlıklarıyla ölçülüyor",
    "Fine-tuning {model} on {data}": "{model}, {data} üzerinde ince ayarlanıyor",
    "Measuring the fine-tuned model": "İnce ayarlı model ölçülüyor",
    "  epoch {epoch} of {epochs}: training {train}, validation {validation}; {seconds} s": (
        "  dönem {epoch}/{epochs}: eğitim {train}, doğrulama {validation}; {seconds} sn"
    ),
    "Pruned already: {path}": "Daha önce budanmış: {path}",
    "Collecting what {method} looks at": "{method} ölçütünün baktığı değerler toplanıyor",
    "Pruning by {method} and proving the result": "{method} ile budanıyor ve sonuç kanıtlanıyor",
    "Measuring the pruned model": "Budanan model ölçülüyor",
    "Fine-tuned already: {path}": "Daha önce ince ayarlanmış: {path}",
    "Fine-tuning what {method} left": "{method} ile budanan modele ince ayar yapılıyor",
    "Timing all models in turn": "Bütün modellerin süreleri dönüşümlü ölçülüyor",
    "Prepared: seed {seed}": "Hazırlandı: tohum {seed}",
    "Done: {cell}": "Tamamlandı: {cell}",
    "Writing the reports": "Raporlar yazılıyor",
    "All numbers were measured in this experiment; this call took {seconds} s.": (
        "Bütün sayılar bu deneyde ölçüldü; bu çağrı {seconds} sn sürdü."
    ),
}
