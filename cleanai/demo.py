"""The demonstration: a trained network is pruned, proven, fine-tuned, measured and reported, in one command."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cleanai import StructuredPruner, WeightActivationImportance
from cleanai.data import (
    augment_cifar10,
    find_all,
    find_cifar10,
    load_cifar10,
    load_digits_data,
    make_loader,
    trained_weights_path,
)
from cleanai.errors import InputError
from cleanai.evaluate import ModelMetrics, measure_model
from cleanai.isolation import preserve_random_state
from cleanai.latency import time_in_turns
from cleanai.models import digits_resnet, load_weights, resnet20
from cleanai.narrator import Narrator
from cleanai.report import Report
from cleanai.select import check_ratio
from cleanai.texts import percent
from cleanai.training import Recipe, train_classifier

__all__ = [
    "run_demo",
]

CALIBRATION_BATCH_SIZE = 64
CALIBRATION_BATCHES = 10
CIFAR10_TUNING_IMAGES = 10_000
TUNING_SECONDS = 60  # a bound for slow machines; the schedule then follows the clock
CIFAR10_CALIBRATION_IMAGES = CALIBRATION_BATCH_SIZE * CALIBRATION_BATCHES

_TURKISH = {
    "Training a small residual network on scikit-learn's digits": (
        "Küçük bir artık bağlantılı (residual) ağ, scikit-learn'ün el yazısı rakamlarıyla eğitiliyor"
    ),
    "Loading the trained ResNet-20 and CIFAR-10": "Eğitilmiş ResNet-20 ve CIFAR-10 yükleniyor",
    "Measuring the original": "Özgün model ölçülüyor",
    "Collecting activations on {samples} calibration images": (
        "{samples} kalibrasyon görüntüsünde aktivasyonlar toplanıyor"
    ),
    "Pruning {share} of the MACs and proving the result": "MAC'lerin {share} kadarı budanıyor ve sonuç kanıtlanıyor",
    "Measuring the pruned model": "Budanan model ölçülüyor",
    "Fine-tuning": "İnce ayar yapılıyor",
    "Measuring the fine-tuned model": "İnce ayarlı model ölçülüyor",
    "Timing the original and the pruned model in turn": "Özgün ve budanmış modelin süreleri dönüşümlü ölçülüyor",
    "Drawing the figures and writing the report": "Şekiller çiziliyor ve rapor yazılıyor",
    "Report: {path} (open it in a browser; the same as data: {data})": (
        "Rapor: {path} (tarayıcıda açın; aynısının verisi: {data})"
    ),
    "All numbers above were measured in this run, which took {seconds} s.": (
        "Yukarıdaki bütün sayılar {seconds} sn süren bu çalışmada ölçüldü."
    ),
}


@dataclasses.dataclass(frozen=True)
class Subject:
    """What one demonstration works on: a trained model, its data, and how to fine-tune it.

    `calibration` and `tuning` are training images; `test` is used for measuring only.
    """

    model_name: str
    model: nn.Module
    example: Tensor
    calibration: TensorDataset
    tuning: DataLoader
    test: DataLoader
    ratio: float
    epochs: int
    lr: float


def run_demo(
    data: str = "digits",
    *,
    ratio: float | None = None,
    output: str | Path = "reports",
    language: str = "en",
    seed: int = 0,
) -> Report:
    """The report of pruning a real network on real images; printed, and saved as HTML and JSON in the output folder.

    The weight–activation score decides, the MACs are the budget, the result is proven equal to the masked original,
    fine-tuned briefly and measured again. torch's random state is left as it was.

    Args:
        data: "digits" trains a small residual network first (seconds); "cifar10" takes a trained ResNet-20 and CIFAR-10
            from the data root.
        ratio: share of the MACs to remove; None takes a half of the digits' network, 0.3 of ResNet-20.
        output: folder of the report (.html and .json), made if missing.
        language: "en" or "tr".
        seed: of the split, the initial weights and the order of the training images.

    Raises:
        InputError: if an argument makes no sense.
        DataMissingError: if CIFAR-10 or the weights are not under the data root.

    Example:
        It takes some seconds:

        >>> run_demo("digits", ratio=0.5).save("digits.md")  # doctest: +SKIP

        What makes no sense is refused before anything runs:

        >>> run_demo("mnist")
        Traceback (most recent call last):
            ...
        cleanai.errors.InputError: run_demo: data must be one of 'digits', 'cifar10', got 'mnist'.
    """
    narrator = Narrator(language, _TURKISH)
    if data not in _SUBJECTS:
        raise InputError(f"run_demo: data must be one of {', '.join(map(repr, _SUBJECTS))}, got {data!r}.")
    if ratio is not None:
        check_ratio(ratio, "ratio")
    folder = Path(output)
    if any(place.exists() and not place.is_dir() for place in (folder, *folder.parents)):
        raise InputError(f"run_demo: output must be a folder, and {folder} cannot be one: a file is in its place.")
    with preserve_random_state(), _thread_limit(_THREADS[data]):
        subject = _SUBJECTS[data](seed, narrator)
        report = _prune_subject(subject, subject.ratio if ratio is None else ratio, narrator, seed)
    with narrator.step("Drawing the figures and writing the report"):
        page, values = report.save(folder / f"demo_{data}.html"), report.save(folder / f"demo_{data}.json")
    print(f"\n{report}\n")
    narrator.say("Report: {path} (open it in a browser; the same as data: {data})", path=page, data=values)
    narrator.say("All numbers above were measured in this run, which took {seconds} s.", seconds=narrator.elapsed())
    return report


def _prune_subject(subject: Subject, ratio: float, narrator: Narrator, seed: int) -> Report:
    pruner = StructuredPruner(
        subject.model,
        subject.example,
        importance=WeightActivationImportance(weight_ratio=0.5, activation_ratio=0.5),
        pruning_ratio=ratio,
        target="macs",
    )
    with narrator.step("Measuring the original") as title:
        metrics = {"original": _measure(subject.model, subject, title)}
    with narrator.step("Collecting activations on {samples} calibration images", samples=len(subject.calibration)):
        loader = make_loader(subject.calibration, batch_size=CALIBRATION_BATCH_SIZE)
        pruner.collect_activations(loader, num_batches=CALIBRATION_BATCHES)
    with narrator.step("Pruning {share} of the MACs and proving the result", share=percent(ratio, narrator.language)):
        pruned = pruner.prune()
    with narrator.step("Measuring the pruned model") as title:
        metrics["pruned"] = _measure(pruned, subject, title)
    with narrator.step("Fine-tuning") as title:
        recipe = Recipe(epochs=subject.epochs, lr=subject.lr, seed=seed)
        tuning = train_classifier(
            pruned, subject.tuning, recipe, max_seconds=TUNING_SECONDS, device="cpu", progress=title
        )
    with narrator.step("Measuring the fine-tuned model") as title:
        metrics["fine-tuned"] = _measure(pruned, subject, title)
    with narrator.step("Timing the original and the pruned model in turn"):
        times = time_in_turns([subject.model, pruned], subject.example)
    # Fine-tuning changes weights, not operations, so the time of the pruned network is one.
    latencies = {"original": times[0], "pruned": times[1], "fine-tuned": times[1]}
    metrics = {stage: dataclasses.replace(metrics[stage], latency=latencies[stage]) for stage in metrics}
    return pruner.report(
        model_name=subject.model_name,
        metrics=metrics,
        history=[dataclasses.asdict(record) for record in tuning.history],
        language=narrator.language,
    )


def _measure(model: nn.Module, subject: Subject, title: str) -> ModelMetrics:
    return measure_model(model, subject.example, loader=subject.test, progress=title)


def _prepare_digits(seed: int, narrator: Narrator) -> Subject:
    with narrator.step("Training a small residual network on scikit-learn's digits") as title:
        data = load_digits_data(seed)
        torch.manual_seed(seed)
        model = digits_resnet()
        loader = make_loader(data.train, batch_size=64, shuffle_seed=seed)
        recipe = Recipe(epochs=25, lr=0.05, weight_decay=5e-3, seed=seed)
        train_classifier(model, loader, recipe, device="cpu", progress=title)
    return Subject(
        model_name="digits_resnet",
        model=model.eval(),
        example=data.test.tensors[0][:1],
        calibration=data.calibration,
        tuning=loader,
        test=make_loader(data.test, batch_size=450),
        ratio=0.5,
        epochs=5,
        lr=0.02,
    )


def _prepare_cifar10(seed: int, narrator: Narrator) -> Subject:
    with narrator.step("Loading the trained ResNet-20 and CIFAR-10"):
        find_all([find_cifar10, lambda: trained_weights_path("resnet20")], narrator.language)
        model = load_weights(resnet20(), trained_weights_path("resnet20"))
        test = load_cifar10("test")
        train = load_cifar10("train", limit=CIFAR10_TUNING_IMAGES, seed=seed)
        images, labels = (tensor[:CIFAR10_CALIBRATION_IMAGES] for tensor in train.tensors)
    return Subject(
        model_name="ResNet-20 (CIFAR-10)",
        model=model.eval(),
        example=test.tensors[0][:1],
        calibration=TensorDataset(images, labels),
        tuning=make_loader(train, batch_size=100, shuffle_seed=seed, augment=augment_cifar10),
        test=make_loader(test, batch_size=250),
        ratio=0.3,
        epochs=1,
        lr=0.01,
    )


_SUBJECTS = {"digits": _prepare_digits, "cifar10": _prepare_cifar10}

# The digits' network is too small to gain from a second thread, and on a busy machine it can lose ten times its speed.
_THREADS = {"digits": 1, "cifar10": None}


@contextlib.contextmanager
def _thread_limit(threads: int | None) -> Generator[None]:
    """At most so many CPU threads for torch; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, threads or before))
    try:
        yield
    finally:
        torch.set_num_threads(before)
