"""The accuracy benchmark, the fine-tuned comparison and the ViT's training: their numbers agree with a recount."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks import accuracy_page, finetune
from benchmarks.accuracy import (
    CRITERIA,
    KEEP,
    RESULTS,
    Benchmark,
    Job,
    Row,
    check_settings,
    describe_run,
    describe_subject,
    find_missing,
    find_turn,
    list_jobs,
    read_facts,
    read_rows,
    run,
    save_facts,
    save_rows,
)
from benchmarks.finetune import Settings, Trial, is_noise, measure_trials, read_trials, save_trials, summarise
from benchmarks.subjects import SUBJECTS, Subject, make_subject
from benchmarks.train_vit import save_checkpoint, train_vit
from cleanai import StructuredPruner
from cleanai.data import load_digits_data, make_loader
from cleanai.errors import InputError
from cleanai.models import cifar_vit, digits_resnet
from cleanai.plots import CostCurve, CostPoint, plot_accuracy_cost
from cleanai.recover import METHODS, recover_model
from cleanai.training import Recipe, train_classifier


def part_of(dataset: TensorDataset, count: int) -> TensorDataset:
    return TensorDataset(*(tensor[:count] for tensor in dataset.tensors))


@pytest.fixture(scope="module")
def digits() -> Subject:
    """A small network that knows the digits."""
    data = load_digits_data()
    torch.manual_seed(0)
    model = digits_resnet(8)
    train_classifier(model, make_loader(data.train, batch_size=64, shuffle_seed=0), Recipe(epochs=3, lr=0.1))
    calibration, test = part_of(data.calibration, 96), part_of(data.test, 200)
    return make_subject("digits", model, calibration, test, data="digits", mirror=False, batch=32)


def count_right(model: nn.Module, subject: Subject) -> float:
    images, labels = (torch.cat(parts) for parts in zip(*subject.test, strict=True))
    with torch.no_grad():
        return 100 * float((copy.deepcopy(model).eval()(images).argmax(1) == labels).float().mean())


def count_products(model: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates from the shapes of weights and outputs, counted by hand."""
    total = 0

    def add(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        assert isinstance(module.weight, Tensor)
        total += module.weight[0].numel() * output[0].numel()

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(add) for layer in layers]
    with torch.no_grad():
        copy_of_mode = model.training
        model.eval()(example)
        model.train(copy_of_mode)
    for handle in handles:
        handle.remove()
    return total


def make_row(**values: object) -> Row:
    facts = {"accuracy_before": 90.0, "calibration_images": 9, "mirror": True, "test_images": 9, "accuracy": 80.0}
    job = {"model": "resnet20", "criterion": "l2", "keep": 0.5, "recovery": "none"}
    return Row(**{**job, **facts, "macs_kept": 0.5, "parameters_kept": 0.6, **values})  # ty: ignore[invalid-argument-type]


# ---------------------------------------------------------------------------------------------------------- the rows


def test_mirror_images_follow_their_originals() -> None:
    images, labels = torch.arange(12.0).reshape(3, 1, 2, 2), torch.tensor([4, 5, 6])
    data = TensorDataset(images, labels)
    subject = make_subject("toy", nn.Flatten(), data, data, data="toy", mirror=True, batch=4)
    (first, first_labels), (second, second_labels) = subject.calibration
    assert first_labels.tolist() == [4, 4, 5, 5] and second_labels.tolist() == [6, 6]
    assert torch.equal(torch.cat([first, second])[::2], images)
    assert torch.equal(second[1, 0], torch.tensor([[9.0, 8.0], [11.0, 10.0]]))  # left and right exchanged
    assert subject.calibration_images == 3
    plain = make_subject("toy", nn.Flatten(), data, data, data="toy", mirror=False, batch=4)
    assert torch.equal(plain.calibration[0][0], images)


def test_important_rows_come_first_and_none_is_left_out() -> None:
    models = ["resnet20", "resnet56"]
    jobs = list_jobs(models, CRITERIA, KEEP, METHODS)
    assert len(jobs) == len(set(jobs)) == 2 * len(CRITERIA) * len(KEEP) * len(METHODS)
    best = [job for job in jobs if (job.criterion, job.recovery) == ("reconstruction", "least_squares")]
    assert jobs[: len(best)] == best and {job.model for job in best} == set(models)
    assert [find_turn(job) for job in jobs] == sorted(find_turn(job) for job in jobs)
    slow = [job for job in jobs[len(best) :] if job.recovery in ("bias", "least_squares")]
    assert jobs[-len(slow) :] == slow
    assert [job.model for job in slow] == sorted(job.model for job in slow)  # all of ResNet-20, then ResNet-56


@pytest.mark.parametrize("criterion", ["l2", "wanda", "taylor"])
def test_rows_agree_with_a_recount(digits: Subject, criterion: str) -> None:
    before = {name: tensor.clone() for name, tensor in digits.model.state_dict().items()}
    jobs = list_jobs(["digits"], [criterion], [0.8, 0.5], ["none", "batchnorm", "bias"])
    rows = {row.job: row for row in Benchmark(lambda _: digits).measure(jobs)}
    assert set(rows) == set(jobs)
    for keep in (0.8, 0.5):
        pruner = StructuredPruner(digits.model, digits.example, criterion, 1 - keep, target="macs", global_pruning=True)
        pruner.collect_activations(digits.calibration, progress=False)
        pruner.collect_gradients(digits.calibration, progress=False)
        pruned = pruner.prune()
        for recovery in ("none", "batchnorm", "bias"):
            row = rows[Job("digits", criterion, keep, recovery)]
            assert row.accuracy_before == pytest.approx(count_right(digits.model, digits), abs=1e-3)
            assert row.macs_kept == pytest.approx(
                count_products(pruned, digits.example) / count_products(digits.model, digits.example), abs=1e-5
            )
            sizes = [sum(p.numel() for p in model.parameters()) for model in (pruned, digits.model)]
            assert row.parameters_kept == pytest.approx(sizes[0] / sizes[1], abs=1e-5)
            repaired = copy.deepcopy(pruned)
            assert pruner.plan is not None
            recover_model(
                *(digits.model, repaired, pruner.plan, pruner.analysis.coupling, digits.calibration, digits.example),
                method=recovery,
                progress=False,
            )
            assert row.accuracy == pytest.approx(count_right(repaired, digits), abs=1e-3)
    assert all(torch.equal(before[name], tensor) for name, tensor in digits.model.state_dict().items())


def test_statistics_are_collected_once_for_all_ratios(digits: Subject) -> None:
    passes: list[int] = []

    class Counted(list):
        def __iter__(self) -> Iterator:
            passes.append(1)
            return super().__iter__()

    subject = replace(digits, calibration=Counted(digits.calibration))
    jobs = list_jobs(["digits"], ["wanda", "taylor", "l2"], [0.8, 0.67, 0.5], ["none"])
    collected = []
    for row in Benchmark(lambda _: subject).measure(jobs):
        collected.append((row.criterion, row.seconds_scores))
    assert len({seconds for name, seconds in collected if name == "wanda"}) == 1
    assert len({seconds for name, seconds in collected if name == "taylor"}) == 1
    assert {seconds for name, seconds in collected if name == "l2"} == {0.0}
    assert len(passes) == 2  # one for each criterion that looks at data


# ---------------------------------------------------------------------------------------------------------- the file


def test_an_interrupted_run_goes_on_where_it_stopped(digits: Subject, tmp_path: Path) -> None:
    jobs = list_jobs(["digits"], ["l2", "random"], [0.8, 0.5], ["none", "batchnorm"])
    path = tmp_path / "rows.csv"

    class Interrupted(Benchmark):
        def measure(self, jobs):
            yield from itertools.islice(super().measure(jobs), 3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(jobs, Interrupted(lambda _: digits), path)
    first = read_rows(path)
    assert {row.job for row in first} == set(jobs[:3])
    measured: list[Job] = []

    class Watched(Benchmark):
        def measure(self, jobs):
            for row in super().measure(jobs):
                measured.append(row.job)
                yield row

    run(jobs, Watched(lambda _: digits), path)
    assert measured == jobs[3:]
    rows = read_rows(path)
    assert {row.job for row in rows} == set(jobs) and set(first) <= set(rows)
    facts = read_facts(path.with_suffix(".json"))
    assert facts["subjects"]["digits"] == describe_subject(digits, rows[0].accuracy_before)
    assert facts["subjects"]["digits"]["macs"] == count_products(digits.model, digits.example)


def test_a_failure_costs_its_own_rows_only(digits: Subject, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    jobs = list_jobs(["digits"], ["no_such_criterion", "l2"], [0.5], ["none", "batchnorm"])
    rows = {row.job: row for row in run(jobs, Benchmark(lambda _: digits), path)}
    assert [rows[job].accuracy is None for job in jobs] == [True, True, False, False]
    assert "no importance is named 'no_such_criterion'" in rows[jobs[0]].note
    assert read_rows(path)[-1].accuracy is None  # a name that the benchmark does not know comes last
    assert find_missing(jobs, rows.values(), retry=False) == []
    assert find_missing(jobs, rows.values(), retry=True) == jobs[:2]


def test_rows_survive_the_file(tmp_path: Path) -> None:
    rows = [
        make_row(),
        make_row(criterion="taylor", accuracy=None, macs_kept=None, mirror=False, note='a, "b"; ş'),
        make_row(recovery="bias", keep=0.33, seconds_repair=1.25),
    ]
    save_rows(tmp_path / "a.csv", reversed(rows))
    assert set(read_rows(tmp_path / "a.csv")) == set(rows)
    save_rows(tmp_path / "b.csv", rows)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()  # whatever was measured first
    assert read_rows(tmp_path / "none.csv") == []
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="other columns"):
        read_rows(tmp_path / "other.csv")


def test_other_amounts_of_data_do_not_get_into_the_table(digits: Subject) -> None:
    own = make_row(model="digits", calibration_images=96, mirror=False, test_images=200)
    check_settings([own, make_row()], digits, Path("a.csv"))
    with pytest.raises(InputError, match=r"\(96, False, 100\).*\(96, False, 200\)"):
        check_settings([replace(own, test_images=100)], digits, Path("a.csv"))


# ---------------------------------------------------------------------------------------------------------- the page


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [
        make_row(criterion="reconstruction", recovery="least_squares", accuracy=87.53, seconds_repair=60.4),
        make_row(criterion="reconstruction", accuracy=40.0),
        make_row(criterion="l2", accuracy=31.25),
        make_row(criterion="l2", recovery="batchnorm", accuracy=57.61, macs_kept=0.56),
        make_row(criterion="l2", keep=0.8, accuracy=85.0, macs_kept=0.8),
        make_row(criterion="lamp", accuracy=None, note="failed: no"),
    ]
    save_rows(tmp_path / "accuracy.csv", rows)
    subject = {"data": "CIFAR-10", "accuracy": 91.73, "macs": 40_551_040, "parameters": 269_722}
    amounts = {"calibration_images": 1024, "mirror": True, "test_images": 10_000}
    save_facts(tmp_path / "accuracy.json", {**describe_run(), "subjects": {"resnet20": {**subject, **amounts}}})
    return tmp_path / "accuracy.csv"


def test_the_page_says_what_the_table_says(table: Path) -> None:
    written = accuracy_page.write_pages(table, table.parent)
    assert all(path.stat().st_size < 200_000 for path in written)
    english = (table.parent / "accuracy.md").read_text(encoding="utf-8")
    turkish = (table.parent / "accuracy.tr.md").read_text(encoding="utf-8")
    for line in (
        "| criterion | MACs 80 % | MACs 50 % |",
        "| `reconstruction` | — | **87.5** (LS) |",
        "| `l2` | **85.0** (none) | 57.6 (BN, 56.0 %) |",
        "| `l2` | 31.2 | 57.6 | — |",
        "- resnet20, lamp: failed: no",
    ):
        assert line in english
    assert "**87.53 %**, after 60 s" in english
    assert "Before: **91.73 %** with 40.55 M MACs and 269,722 parameters, on 10,000 test images" in english
    assert "| `l2` | **85,0** (none) | 57,6 (BN, %56,0) |" in turkish and "%91,73" in turkish
    assert english.count("\n|") == turkish.count("\n|")


def test_the_page_takes_the_fine_tuned_table_in(table: Path) -> None:
    save_trials(table.with_name("finetune.csv"), make_trials({"l2": (88.0, 88.4), "random": (85.0, 85.2)}))
    page = accuracy_page.make_page(
        read_rows(table), read_facts(table.with_suffix(".json")), "en", table.with_name("finetune.csv")
    )
    assert "| `l2` | none | 50.00 | 88.20 | 0.28 | 0.00 | best |" in page
    assert "| `random` | none | 50.00 | 85.10 | 0.14 | 3.10 | difference |" in page


def test_figures_are_the_same_for_the_same_rows(table: Path) -> None:
    rows = read_rows(table)
    first = [path.read_bytes() for path in accuracy_page.draw_figures(rows, table.parent / "a", "en")]
    second = [path.read_bytes() for path in accuracy_page.draw_figures(rows, table.parent / "b", "en")]
    assert first == second


def test_curves_are_the_best_repairs(table: Path) -> None:
    curves = {curve.label: curve for curve in accuracy_page.make_curves(read_rows(table), "en")}
    assert list(curves) == ["reconstruction", "l2"]  # nothing of LAMP was measured
    assert set(curves["l2"].points) == {CostPoint(0.5, 0.56, 57.61, "BN"), CostPoint(0.8, 0.8, 85.0, "none")}


def test_every_criterion_has_a_family_and_every_network_a_title() -> None:
    assert sorted(itertools.chain(*accuracy_page.FAMILIES.values())) == sorted(CRITERIA)
    assert set(accuracy_page.TITLES) == set(SUBJECTS)
    assert accuracy_page.TEXTS["en"].keys() == accuracy_page.TEXTS["tr"].keys()


@pytest.mark.skipif(not RESULTS.is_file(), reason="docs/results/accuracy.csv has not been measured yet")
@pytest.mark.parametrize("language", ["en", "tr"])
def test_the_kept_pages_say_what_the_kept_results_say(language: str) -> None:
    facts, trials = read_facts(RESULTS.with_suffix(".json")), RESULTS.with_name("finetune.csv")
    page = accuracy_page.DOCS / accuracy_page.PAGES[language]
    assert page.read_text(encoding="utf-8") == accuracy_page.make_page(read_rows(RESULTS), facts, language, trials)


# -------------------------------------------------------------------------------------------------------- the figure


CURVES = (
    CostCurve("net", "joint", "first", 92.0, (CostPoint(0.5, 0.52, 87.0, "LS"), CostPoint(0.8, 0.8, 91.0))),
    CostCurve("net", "l2", "second", 92.0, (CostPoint(0.5, 0.5, 60.0),)),
    CostCurve("other net", "joint", "first", 80.0, (CostPoint(0.5, 0.5, 50.0),)),
    CostCurve("other net", "l2", "second", 80.0, (CostPoint(0.5, 0.5, 55.0),)),
    CostCurve("third net", "joint", "first", 80.0, (CostPoint(0.5, 0.5, 56.0),)),
)


def test_the_figure_shows_the_points_and_says_what_they_show() -> None:
    figure = plot_accuracy_cost(CURVES)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["net", "other net", "third net"]
    title = " ".join(figure.get_suptitle().split())  # which is broken into lines
    assert title == "At 50 % of the MACs, joint is best on 1 of 2 networks (net: joint + LS 87.0 %, l2 60.0 %)."
    before, *lines = figure.axes[0].get_lines()
    assert set(np.asarray(before.get_ydata())) == {92.0}
    drawn = [list(zip(np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), strict=True)) for line in lines]
    assert drawn == [[(50.0, 60.0)], [(52.0, 87.0), (80.0, 91.0)]]
    assert lines[1].get_linewidth() > lines[0].get_linewidth()
    assert lines[1].get_color() != lines[0].get_color()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["joint", "l2", "before pruning"]


def test_a_network_with_one_criterion_is_not_counted_as_won() -> None:
    title = " ".join(plot_accuracy_cost((*CURVES[:2], CURVES[-1])).get_suptitle().split())
    assert title == "At 50 % of the MACs, joint is best (net: joint + LS 87.0 %, l2 60.0 %)."


def test_the_figure_speaks_turkish_and_refuses_nothing_to_draw() -> None:
    figure = plot_accuracy_cost(CURVES[:1], "tr")
    assert "%87,0" in figure.get_suptitle()
    assert figure.axes[0].get_ylabel() == "doğruluk (%)"
    with pytest.raises(InputError, match="no point"):
        plot_accuracy_cost([CostCurve("net", "l2", "a", 90.0, ())])


# ------------------------------------------------------------------------------------------------------- fine-tuning


def make_trials(accuracies: dict[str, tuple[float, ...]], **values: object) -> list[Trial]:
    facts = {"recovery": "none", "keep": 0.5, "epochs": 2, "lr": 0.01, "train_images": 100, "test_images": 50}
    facts |= {"accuracy_before": 90.0, "accuracy_cut": 50.0, "macs_kept": 0.5, "parameters_kept": 0.4, "seconds": 1.0}
    return [
        Trial(**{**facts, "criterion": name, "seed": seed, "accuracy": accuracy, **values})  # ty: ignore[invalid-argument-type]
        for name, each in accuracies.items()
        for seed, accuracy in enumerate(each)
    ]


def test_noise_is_a_difference_below_two_standard_errors() -> None:
    # Variances 1 and 4 over three seeds each: the standard error of the difference is √(1/3 + 4/3) = 1.291.
    first = [79.0, 80.0, 81.0]
    assert is_noise(first, [75.5, 77.5, 79.5])  # 2.5 apart, below 2.58
    assert not is_noise(first, [75.4, 77.4, 79.4])  # 2.6 apart
    assert is_noise([90.0], [10.0, 10.0])  # one seed has no spread


def test_summary_ranks_by_mean_and_says_what_is_noise() -> None:
    best, near, far = summarise(make_trials({"far": (70.0, 71.0), "best": (80.0, 82.0), "near": (79.0, 81.0)}))
    assert (best.criterion, best.mean, best.behind, best.verdict) == ("best", 81.0, 0.0, "top")
    assert best.deviation == pytest.approx(2**0.5)
    assert (near.criterion, near.behind, near.verdict) == ("near", 1.0, "noise")
    assert (far.criterion, far.behind, far.verdict) == ("far", 10.5, "real")


def test_trials_agree_with_a_recount_and_are_not_repeated(digits: Subject, tmp_path: Path) -> None:
    data = part_of(load_digits_data().train, 128)
    settings = Settings(keep=0.5, epochs=1, lr=0.02, seeds=(0, 1))
    benchmark = Benchmark(lambda _: digits)
    trials = list(measure_trials(benchmark, digits, data, [("l2", "none"), ("l2", "batchnorm")], settings))
    assert [trial.key for trial in trials] == [
        *(("l2", "none", 0), ("l2", "none", 1)),
        *(("l2", "batchnorm", 0), ("l2", "batchnorm", 1)),
    ]
    pruned = StructuredPruner(digits.model, digits.example, "l2", 0.5, target="macs", global_pruning=True).prune()
    assert trials[0].accuracy_cut == trials[1].accuracy_cut == pytest.approx(count_right(pruned, digits), abs=1e-3)
    loader = make_loader(data, batch_size=128, shuffle_seed=1, augment=finetune.augment_cifar10)
    train_classifier(pruned, loader, Recipe(epochs=1, lr=0.02, seed=1))
    assert trials[1].accuracy == pytest.approx(count_right(pruned, digits), abs=1e-3)
    save_trials(tmp_path / "a.csv", trials[:3])
    assert read_trials(tmp_path / "a.csv") == trials[:3]
    left = replace(settings, done=frozenset(trial.key for trial in trials[:3]))
    again = list(measure_trials(benchmark, digits, data, [("l2", "none"), ("l2", "batchnorm")], left))
    assert [replace(trial, seconds=0) for trial in again] == [replace(trial, seconds=0) for trial in trials[3:]]


def test_trials_of_other_settings_are_refused(tmp_path: Path) -> None:
    trials = make_trials({"l2": (80.0,)})
    finetune.check_settings(trials, Settings(), 100, 50, tmp_path)
    with pytest.raises(InputError, match="give the same settings or another"):
        finetune.check_settings(trials, Settings(epochs=3), 100, 50, tmp_path)
    with pytest.raises(InputError, match="one setting"):
        finetune.describe_trials([*trials, *make_trials({"l1": (80.0,)}, lr=0.1)])


def test_the_printed_table_has_every_way_to_cut() -> None:
    table = finetune.make_table(make_trials({"l2": (88.0, 88.4), "random": (85.0, 85.2)}))
    assert "| l2 | none | 0.500 | 50.00 | 88.20 | 0.28 | 0.00 | best |" in table
    assert finetune.parse_way("l2:least_squares") == ("l2", "least_squares")
    assert {finetune.parse_way(way)[0] for way in finetune.WAYS} <= set(CRITERIA)


# --------------------------------------------------------------------------------------------------------- the ViT


def tiny_vit() -> nn.Module:
    torch.manual_seed(0)
    return cifar_vit(dim=8, depth=1, num_heads=2)


def test_a_resumed_training_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    images = torch.randn(64, 3, 32, 32, generator=generator) + 3.0 * labels[:, None, None, None]
    data = TensorDataset(images, labels)
    whole, parts = tiny_vit(), tiny_vit()
    records = list(train_vit(whole, data, epochs=6, checkpoint=tmp_path / "whole", lr=1e-2))
    assert [epoch for epoch, _, _ in records] == [1, 2, 3, 4, 5, 6]
    assert records[-1][1] < 0.8 * records[0][1] and records[-1][2] > 90  # it learns
    next(train_vit(parts, data, epochs=6, checkpoint=tmp_path / "parts", lr=1e-2))
    resumed = tiny_vit()
    epochs = [epoch for epoch, _, _ in train_vit(resumed, data, epochs=6, checkpoint=tmp_path / "parts", lr=1e-2)]
    assert epochs == [2, 3, 4, 5, 6]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    with pytest.raises(InputError, match="epochs=7"):
        next(train_vit(tiny_vit(), data, epochs=7, checkpoint=tmp_path / "parts", lr=1e-2))


def test_checkpoints_leave_nothing_half_written(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path / "a.checkpoint", model, optimizer, "settings", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["a.checkpoint"]
