"""Experiments from end to end: every promised file exists and agrees with a recount; what is done is not redone."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pypdf import PdfReader

from cleanai import InputError
from cleanai.cli import main
from cleanai.data import load_digits_data
from cleanai.evaluate import count_macs, count_parameters, model_size_mb
from cleanai.experiments import ExperimentConfig, ExperimentResults, load_checkpoint, read_checkpoint, run_experiment
from cleanai.experiments.results import FINETUNED, ORIGINAL, PRUNED
from cleanai.verify import verify_pruning

HERE = Path(__file__).parent
SUBJECT = "DigitsResNet_Digits"
CODES = {
    "coverage": ("Coverage", "NC"),
    "wanda": ("WANDA", "W"),
    "magnitude": ("Magnitude", "M"),
    "taylor": ("Taylor", "T"),
}
QUICK: dict[str, Any] = {"prepare_epochs": 2, "finetune_epochs": 1, "iterative_steps": 1, "latency_seconds": 0.1}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of ``cleanai run TS1 --profile smoke``."""
    folder = tmp_path_factory.mktemp("smoke")
    assert main(["run", "TS1", "--profile", "smoke", "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def results(smoke: Path) -> ExperimentResults:
    return ExperimentResults.load(smoke / f"reports/TS1_{SUBJECT}.json")


def measure_again(path: Path) -> dict[str, float]:
    """What a checkpoint's model costs and achieves, counted without the code that wrote it down."""
    model = load_checkpoint(path)
    images, labels = load_digits_data(0).test.tensors
    with torch.no_grad():
        logits = model(images)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "macs": count_macs(model, images[:1]),
        "accuracy": 100 * float((logits.argmax(1) == labels).double().mean()),
        "loss": float(torch.nn.functional.cross_entropy(logits, labels)),
    }


def digest_files(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.safetensors")}


# -------------------------------------------------------------------------------------------------- files and numbers


def test_every_promised_file_is_there(smoke: Path) -> None:
    prepared = [f"{SUBJECT}_{state}" for state in ("pretrained", "FT_epoch1", "FT_epoch6", "FT_last", "FT_final")]
    paths = [Path("checkpoints/TS1") / f"{name}.safetensors" for name in prepared]
    for title, code in (CODES["coverage"], CODES["wanda"]):
        folder = Path("checkpoints") / f"TS1_{title}_{SUBJECT}"
        states = (f"pruned_{code}", f"FTAP_{code}_epoch1", f"FTAP_{code}_epoch2", f"FTAP_{code}_final")
        paths += [folder / f"{SUBJECT}_{state}.safetensors" for state in states]
        paths += [Path("reports") / f"TS1_{title}_{SUBJECT}{suffix}" for suffix in (".pdf", ".html", ".json")]
    paths += [
        Path("reports") / f"TS1_{SUBJECT}{suffix}" for suffix in (".pdf", ".html", ".json", ".csv", "_config.json")
    ]
    missing = [str(path) for path in paths if not (smoke / path).is_file()]
    assert not missing
    assert not [path for path in smoke.rglob("*") if path.name.startswith((".", "training_"))]  # nothing half done


def test_numbers_agree_with_a_recount_from_the_checkpoints(smoke: Path, results: ExperimentResults) -> None:
    assert list(results.methods) == ["coverage", "wanda"]
    for result in results.methods.values():
        title, code = CODES[result.method]
        folder = smoke / "checkpoints" / f"TS1_{title}_{SUBJECT}"
        places = {
            ORIGINAL: smoke / "checkpoints/TS1" / f"{SUBJECT}_FT_final.safetensors",
            PRUNED: folder / f"{SUBJECT}_pruned_{code}.safetensors",
            FINETUNED: folder / f"{SUBJECT}_FTAP_{code}_final.safetensors",
        }
        assert list(result.report.metrics) == list(places)
        for stage, path in places.items():
            told = result.report.metrics[stage]
            again = measure_again(path)
            assert told.parameters == again["parameters"] and told.macs == again["macs"]
            assert told.accuracy == pytest.approx(again["accuracy"], abs=1e-9)
            assert told.loss == pytest.approx(again["loss"], rel=1e-5)
            assert told.size_mb == pytest.approx(model_size_mb(load_checkpoint(path)))
            assert told.samples == 450 and told.latency is not None and told.latency.median_ms > 0
        assert all((smoke / path).is_file() for path in result.files.values())
    after = results.preparation.after.metrics
    assert after == results.methods["wanda"].report.metrics[ORIGINAL]
    assert (after.accuracy or 0) > 85 > 30 > (results.preparation.before.metrics.accuracy or 0)


def test_the_cut_is_the_masked_original(smoke: Path, results: ExperimentResults) -> None:
    original = load_checkpoint(smoke / "checkpoints/TS1" / f"{SUBJECT}_FT_final.safetensors")
    for result in results.methods.values():
        title, code = CODES[result.method]
        path = smoke / "checkpoints" / f"TS1_{title}_{SUBJECT}" / f"{SUBJECT}_pruned_{code}.safetensors"
        plan = read_checkpoint(path).plan
        assert plan is not None and plan.dropped_units / plan.units == pytest.approx(0.2, abs=0.03)
        pruned = load_checkpoint(path)
        assert verify_pruning(original, pruned, plan, torch.zeros(1, 1, 8, 8)).passed
        assert result.report.proof.passed
        assert count_parameters(pruned) < 0.8 * count_parameters(original)


def test_checkpoints_of_epochs_lead_to_the_final_one(smoke: Path, results: ExperimentResults) -> None:
    for result in results.methods.values():
        title, code = CODES[result.method]
        folder = smoke / "checkpoints" / f"TS1_{title}_{SUBJECT}"
        best = load_checkpoint(folder / f"{SUBJECT}_FTAP_{code}_epoch{result.best_epoch}.safetensors").state_dict()
        final = load_checkpoint(folder / f"{SUBJECT}_FTAP_{code}_final.safetensors").state_dict()
        assert all(torch.equal(best[name], tensor) for name, tensor in final.items())
        history = result.report.history or []
        assert [record["epoch"] for record in history] == [1, 2]
        assert (
            max(record["val_accuracy"] for record in history) == history[(result.best_epoch or 0) - 1]["val_accuracy"]
        )


def test_the_table_holds_the_results(smoke: Path, results: ExperimentResults) -> None:
    with (smoke / f"reports/TS1_{SUBJECT}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["stage"]) for row in rows] == [
        (method, stage) for method in ("coverage", "wanda") for stage in (ORIGINAL, PRUNED, FINETUNED)
    ]
    for row in rows:
        metrics = results.methods[row["method"]].report.metrics[row["stage"]]
        assert (int(row["parameters"]), float(row["accuracy"])) == (metrics.parameters, metrics.accuracy)
        assert int(row["flops"]) == 2 * metrics.macs


def test_the_documents_open_and_say_the_same(smoke: Path, results: ExperimentResults) -> None:
    for name, methods in (("Coverage_", ["coverage"]), ("WANDA_", ["wanda"]), ("", ["coverage", "wanda"])):
        stem = smoke / "reports" / f"TS1_{name}{SUBJECT}"
        text = "".join(page.extract_text() for page in PdfReader(f"{stem}.pdf").pages)
        page = Path(f"{stem}.html").read_text()
        for method in methods:
            for metrics in results.methods[method].report.metrics.values():
                assert f"{metrics.accuracy:.2f}" in text and f"{metrics.accuracy:.2f}" in page
        assert "<script" not in page and 'src="http' not in page


def test_every_figure_is_a_file_of_its_own(smoke: Path) -> None:
    wanted = {f"TS1_{SUBJECT}_{name}" for name in ("methods", "accuracy_cost", "preparation", "finetuning_wanda")}
    for method in ("Coverage", "WANDA"):
        names = ("stages", "accuracy_cost", "preparation", "kept_channels", "scores", "finetuning")
        wanted |= {f"TS1_{method}_{SUBJECT}_{name}" for name in names}
    for suffix in (".svg", ".png"):
        assert wanted <= {path.stem for path in (smoke / "reports/figures").glob(f"*{suffix}")}
    for path in (smoke / "reports/figures").glob("*.png"):
        with Image.open(path) as picture:
            assert picture.width > 600


def test_settings_and_environment_are_kept(smoke: Path, results: ExperimentResults) -> None:
    assert ExperimentConfig.load(smoke / f"reports/TS1_{SUBJECT}_config.json") == results.config
    assert results.environment.command == "cleanai run TS1 --profile smoke"
    assert results.environment.versions["torch"] == torch.__version__
    data = results.data
    assert (data.train, data.validation, data.test) == (1050 - 200, 200, 450)


# ------------------------------------------------------------------------------------------------ again, and otherwise


def test_what_is_done_is_not_done_again(smoke: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(smoke, tmp_path / "copy")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "copy").rglob("*.safetensors")}
    again = run_experiment("TS1", profile="smoke", output=tmp_path / "copy", documents=False)
    assert again is not None
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert capsys.readouterr().out.count("already") == 5


def test_other_settings_are_refused_and_named(smoke: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = digest_files(smoke)
    words = ["run", "TS1", "--profile", "smoke", "--output", str(smoke), "--set", "pruning_ratio=0.4", "momentum=0.8"]
    assert main(words) == 1
    told = capsys.readouterr().err
    assert "momentum was 0.9, is 0.8" in told and "--overwrite" in told
    assert main([*words[:-1], "language=tr"]) == 1
    assert "pruning_ratio was 0.2, is 0.4" in capsys.readouterr().err
    assert digest_files(smoke) == before


def test_overwrite_replaces_and_repeats_bit_by_bit(smoke: Path, tmp_path: Path) -> None:
    shutil.copytree(smoke, tmp_path / "copy")
    run_experiment("TS1", profile="smoke", output=tmp_path / "copy", overwrite=True, documents=False, silent=True)
    ours = {path.name: path.read_bytes() for path in smoke.rglob("*.safetensors")}
    theirs = {path.name: path.read_bytes() for path in (tmp_path / "copy").rglob("*.safetensors")}
    assert ours == theirs


def test_a_preparation_can_be_shared(smoke: Path, tmp_path: Path) -> None:
    found = run_experiment(
        "TS1",
        profile="smoke",
        output=tmp_path,
        prepared=smoke,
        methods="magnitude,taylor",
        documents=False,
        silent=True,
        **{name: value for name, value in QUICK.items() if name != "prepare_epochs"},
    )
    assert found is not None and list(found.methods) == ["magnitude", "taylor"]
    assert not (tmp_path / "checkpoints/TS1").exists()
    for method in ("magnitude", "taylor"):
        title, code = CODES[method]
        assert (tmp_path / f"checkpoints/TS1_{title}_{SUBJECT}/{SUBJECT}_pruned_{code}.safetensors").is_file()
    with pytest.raises(InputError, match="prepare"):
        run_experiment("TS1", profile="smoke", output=tmp_path / "a", prepared=tmp_path / "b", silent=True)


def test_a_stage_is_the_last_one_to_run(tmp_path: Path) -> None:
    words = ["run", "TS1", "--profile", "smoke", "--method", "wanda", "--output", str(tmp_path), "--set"]
    settings = [f"{name}={value}" for name, value in QUICK.items()]
    assert main([*words, *settings, "--stage", "prepare"]) == 0
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["TS1"]
    assert main([*words, *settings, "--stage", "prune"]) == 0
    assert len(list((tmp_path / "checkpoints").rglob("*pruned_W*"))) == 1
    assert not list((tmp_path / "checkpoints").rglob("*FTAP*"))
    assert not list((tmp_path / "reports").glob("*.pdf"))


def test_turkish_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "TS1", "--profile", "smoke", "--method", "coverage", "--language", "tr", "--output", str(tmp_path)]
    assert main([*words, "--set", *[f"{name}={value}" for name, value in QUICK.items()]]) == 0
    assert "İnce ayarlı model ölçülüyor" in capsys.readouterr().out
    text = "".join(page.extract_text() for page in PdfReader(tmp_path / f"reports/TS1_Coverage_{SUBJECT}.pdf").pages)
    assert all(word in text for word in ("Budama", "doğruluk", "ğ", "ş", "ı"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["TS7"], "TS1, TS2, TS3, TS4"),
        (["TS1", "--profile", "fast"], "full, quick, smoke"),
        (["TS1", "--set", "ratio=0.3"], "pruning_ratio"),
        (["TS1", "--set", "pruning_ratio"], "key=value"),
        (["TS1", "--method", "cover"], "coverage"),
        (["TS1", "--method", "wanda", "--set", "methods=taylor"], "given twice"),
        (["TS1", "--profile", "smoke", "--set", "model=resnet17"], "resnet18"),
        (["TS1", "--profile", "smoke", "--set", "device=abacus"], "device is 'abacus'"),
        (["TS1", "--profile", "smoke", "--set", "finetune_lr=0"], "lr is 0.0"),
        (["TS1", "--profile", "smoke", "--set", "validation_images=2000"], "validation"),
    ],
)
def test_bad_words_are_answered_before_anything_is_made(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *words, "--output", str(tmp_path)]) == 1
    assert told in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.safetensors"))


def test_output_cannot_be_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(["run", "TS1", "--profile", "smoke", "--output", str(tmp_path / "file")]) == 1
    assert "a file is in its place" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_settings_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings"]) == 0
    told = capsys.readouterr().out
    assert "calibration_batches" in told and "TS4: model=resnet50" in told


# ------------------------------------------------------------------------------------------------------- other data


def write_images(folder: Path, count: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(draw.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / f"{number}.jpg")


def test_an_imagenet_folder_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wnids = ("n01440764", "n02102040", "n02979186")
    for number, wnid in enumerate(wnids):
        write_images(tmp_path / "imagenet/train" / wnid, 10, number)
        write_images(tmp_path / "imagenet/val" / wnid, 2, 100 + number)
    monkeypatch.setenv("CLEANAI_DATA", str(tmp_path))
    settings: dict[str, Any] = {
        "model": "squeezenet1_1",
        "weights": "none",
        "methods": "taylor",
        "workers": 0,
        "batch_size": 8,
        "validation_images": 4,
        "calibration_batches": 1,
        "calibration_batch_size": 4,
        "iterative_steps": 1,
        "finetune_epochs": 1,
        "finetune_lr": 1e-4,
        "latency_seconds": 0.1,
    }
    found = run_experiment("TS4", output=tmp_path / "out", silent=True, **settings)
    assert found is not None and found.data.name == "ImageNet" and found.data.test == 6
    result = found.methods["taylor"]
    assert result.report.proof.passed and list(result.report.metrics) == [ORIGINAL, PRUNED, FINETUNED]
    assert found.preparation.history == [] and len(result.report.history or []) == 1
    assert (tmp_path / "out/reports/TS4_Taylor_SqueezeNet11_ImageNet.pdf").is_file() or list(
        (tmp_path / "out/reports").glob("TS4_Taylor_*_ImageNet.pdf")
    )


def test_missing_data_say_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLEANAI_DATA", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("CLEANAI_CACHE", str(tmp_path / "cache"))
    for scenario, words in (("TS1", ["CIFAR-10", "resnet18", "weights=none"]), ("TS2", ["ImageNet"])):
        assert main(["run", scenario, "--output", str(tmp_path / "out")]) == 1
        told = capsys.readouterr().err
        assert all(word in told for word in words) and "CLEANAI_DATA" in told
    assert main(["run", "TS1", "--language", "tr", "--output", str(tmp_path / "out")]) == 1
    assert "bulunamadı" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------------------------- killed, and in parts


def run_python(*words: str, timeout: float = 240) -> str:
    """What a fresh interpreter prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=timeout, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_killed_ten_times_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    told = json.loads(run_python(str(HERE / "killed_experiment.py"), str(tmp_path), "10", "1").splitlines()[-1])
    assert told["kills"] == 10 and told["while_training"] >= 5
    assert told["killed"] == told["undisturbed"]


def test_two_processes_prune_as_one_and_train(tmp_path: Path) -> None:
    settings = [f"{name}={value}" for name, value in QUICK.items()]
    words = ["run", "TS1", "--profile", "smoke", "--method", "coverage", "taylor", "--set", *settings]
    one, two = tmp_path / "one", tmp_path / "two"
    run_experiment("TS1", profile="smoke", methods="coverage,taylor", output=one, documents=False, silent=True, **QUICK)
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "cleanai"]
    # The preparation is shared, so that both prune the same weights.
    told = run_python(*launch, *words, "--prepared", str(one), "--output", str(two))
    assert told.count("Writing the reports") == 1  # the first process speaks alone
    for method in ("coverage", "taylor"):
        title, code = CODES[method]
        name = f"checkpoints/TS1_{title}_{SUBJECT}/{SUBJECT}_pruned_{code}.safetensors"
        ours, theirs = read_checkpoint(one / name).plan, read_checkpoint(two / name).plan
        assert ours is not None and theirs is not None and not ours.compare(theirs)
        for mine, other in zip(ours.groups, theirs.groups, strict=True):
            assert mine.scores == pytest.approx(other.scores, rel=1e-5)  # float32, other numbers of threads
    found = ExperimentResults.load(two / f"reports/TS1_{SUBJECT}.json")
    assert found.environment.processes == 2
    for result in found.methods.values():
        assert (result.report.metrics[FINETUNED].accuracy or 0) > (result.report.metrics[PRUNED].accuracy or 0)
