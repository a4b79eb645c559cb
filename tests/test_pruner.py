"""The front door: the call a user writes, what it returns and reports, and what it refuses, changing nothing."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import cleanai.rules
import cleanai.slicing
from cleanai import (
    CleanAIError,
    InputError,
    MagnitudeImportance,
    Plan,
    PruningStep,
    Report,
    StructuredPruner,
    TraceError,
    VerificationError,
    WeightActivationImportance,
    analyze_model,
    slice_model,
    verify_pruning,
)
from cleanai.evaluate import ModelMetrics
from cleanai.models import cifar_resnet, digits_resnet


class TwoBranches(nn.Module):
    """Two convolutions joined by a concatenation, a third, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(20)
        self.merge = nn.Conv2d(20, 10, 3)
        self.fc = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(torch.cat([self.left(x), self.right(x)], dim=1)))
        return self.fc(F.relu(self.merge(x)).mean((2, 3)))


def make_model() -> Any:
    torch.manual_seed(0)
    model: Any = TwoBranches()
    with torch.no_grad():
        for tensor in (model.norm.weight, model.norm.bias, model.norm.running_mean):
            tensor.normal_()
        model.norm.running_var.uniform_(0.5, 1.5)
    return model.eval()


def example() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def make_loader(batches: int = 3) -> DataLoader[Any]:
    x = torch.randn(4 * batches, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    return DataLoader(TensorDataset(x, torch.arange(len(x)) % 4), batch_size=4)


def make_pruner(model: nn.Module | None = None, ratio: float = 0.5, **options: Any) -> Any:
    model = make_model() if model is None else model
    return StructuredPruner(model, example(), options.pop("importance", "l2"), ratio, **options)


@pytest.fixture
def quick_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without the two latency measurements, half a second each."""
    original = StructuredPruner._measure
    monkeypatch.setattr(StructuredPruner, "_measure", lambda self, model, latency=True: original(self, model, False))


class Untouched:
    """What a model was before: every tensor, object, mode, flag and hook."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.objects = {name: id(tensor) for name, tensor in self._tensors()}
        self.values = {name: tensor.detach().clone() for name, tensor in self._tensors()}
        self.attributes = self._attributes()
        self.random = torch.get_rng_state()

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.model.named_parameters()
        yield from self.model.named_buffers()

    def _attributes(self) -> list[Any]:
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
        return [
            (
                name,
                type(module),
                [(key, repr(value)) for key, value in sorted(vars(module).items()) if not key.startswith("_")],
                [list(getattr(module, hook)) for hook in hooks],
                [(p.requires_grad, p.grad is None) for p in module.parameters(recurse=False)],
            )
            for name, module in self.model.named_modules()
        ]

    def check(self) -> None:
        assert {name: id(tensor) for name, tensor in self._tensors()} == self.objects
        for name, tensor in self._tensors():
            assert tensor.shape == self.values[name].shape, name
            same = (tensor == self.values[name]) | (tensor.isnan() & self.values[name].isnan())
            assert bool(same.all()), name
        assert self._attributes() == self.attributes
        assert torch.equal(torch.get_rng_state(), self.random)


def count_numbers(model: nn.Module) -> int:
    return sum(tensor.numel() for tensor in {id(p): p for p in model.parameters()}.values())


# ----------------------------------------------------------------------------------------------- what a user writes


def test_the_call_of_the_first_page(capsys: pytest.CaptureFixture[str]) -> None:
    model, example_inputs, calibration_loader = make_model(), example(), make_loader(12)
    before = Untouched(model)

    importance = WeightActivationImportance(weight_ratio=0.5, activation_ratio=0.5)
    pruner = StructuredPruner(model, example_inputs, importance=importance, pruning_ratio=0.3)
    statistics = pruner.collect_activations(calibration_loader, num_batches=10)
    pruned = pruner.prune()
    pruner.summary()

    before.check()
    assert statistics.batches == 10
    assert isinstance(pruned, TwoBranches) and pruned is not model
    assert [pruned.left.out_channels, pruned.right.out_channels, pruned.merge.out_channels] == [6, 8, 7]
    assert pruner.verification is not None and pruner.verification.passed
    printed = capsys.readouterr().out
    for word in (
        "TwoBranches",
        "left",
        "right",
        "merge",
        f"{count_numbers(model):,}",
        "with the removed channels masked",
    ):
        assert word in printed, word


def test_a_new_model_or_the_same_one() -> None:
    model = make_model()
    pruned = make_pruner(model).prune()
    assert pruned is not model and model.left.out_channels == 8
    twin = copy.deepcopy(model)
    inside = make_pruner(twin, inplace=True).prune()
    assert inside is twin and twin.left.out_channels == 4
    for name, tensor in pruned.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[name]), name
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in pruned.parameters()}
    assert not shared, "the pruned model shares memory with the original"


def test_pruning_in_place_keeps_the_modules_their_hooks_and_their_modes() -> None:
    model = make_model().train()
    model.norm.eval()
    modules = [id(module) for module in model.modules()]
    calls: list[int] = []
    model.merge.register_forward_hook(lambda *_: calls.append(1))
    model.left.weight.requires_grad_(False)
    make_pruner(model, inplace=True).prune()
    assert [id(module) for module in model.modules()] == modules
    assert model.training and not model.norm.training
    assert not model.left.weight.requires_grad and model.right.weight.requires_grad
    calls.clear()
    model(example())
    assert calls == [1]


def test_pruning_twice_goes_on_from_the_original_or_in_place_from_what_is_left() -> None:
    pruner = make_pruner()
    first, second = pruner.prune(), pruner.prune()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    model = make_model()
    pruner = make_pruner(model, inplace=True)
    pruner.prune()
    pruner.prune()
    assert model.left.out_channels == 2 and model.merge.out_channels in (2, 3)


def test_pruning_twice_in_place_does_not_use_statistics_of_layers_that_are_gone() -> None:
    """Either new activations are asked for, or those of the channels that are left are used; nothing is skipped."""
    model = make_model()
    pruner = make_pruner(model, inplace=True, importance="activation")
    pruner.collect_activations(make_loader(), progress=False)
    pruner.prune()
    if pruner.statistics is None:
        with pytest.raises(InputError, match="collect_activations"):
            pruner.prune()
    else:
        pruner.prune()
        assert model.left.out_channels == 2


def test_the_proof_can_be_switched_off(quick_report: None) -> None:
    pruner = make_pruner(verify=False)
    pruned = pruner.prune()
    assert pruner.verification is None
    proof = pruner.report().proof
    assert proof.passed is None and "switched off" in proof.note
    assert pruner.plan is not None
    assert verify_pruning(pruner.model, pruned, pruner.plan, example()).passed


def test_nothing_is_asked_and_nothing_goes(quick_report: None) -> None:
    model = make_model()
    pruner = make_pruner(model, ratio=0.0)
    pruned = pruner.prune()
    assert pruner.plan is not None and pruner.plan.is_empty
    assert torch.equal(pruned(example()), model(example()))
    assert pruner.report().budget.reached == 0.0


def test_the_random_state_is_the_callers() -> None:
    model = make_model().train()
    state = torch.get_rng_state()
    pruner = make_pruner(model, importance="weight_activation")
    pruner.collect_activations(make_loader(), progress=False)
    pruner.prune()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_buffer_that_the_forward_counts_in_is_as_before(quick_report: None) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 2)
            self.calls: Tensor
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.second(F.relu(self.first(x)))

    model = Counting()
    before = Untouched(model)
    pruner = StructuredPruner(model, torch.randn(2, 3), "activation", 0.5)
    pruner.collect_activations([torch.randn(4, 3)], progress=False)
    pruner.prune()
    pruner.report()
    before.random = torch.get_rng_state()
    before.check()


def test_example_inputs_of_every_form() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(3, 8), nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return self.out(F.relu(self.a(first) + self.b(second)))

    x, y = torch.randn(2, 3), torch.randn(2, 4)
    for inputs in ((x, y), {"first": x, "second": y}, {"second": y, "first": x}):
        pruned: Any = StructuredPruner(Two(), inputs, "l2", 0.5).prune()
        assert pruned.a.out_features == pruned.b.out_features == 4


def test_forward_fn_and_output_transform_decide_what_runs(quick_report: None) -> None:
    class Steps(nn.Module):
        """Has no forward of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.encode, self.decode = nn.Linear(3, 8), nn.Linear(8, 2)

    calls: list[int] = []

    def run(model: Any, inputs: Tensor) -> Any:
        calls.append(1)
        hidden = F.relu(model.encode(inputs))
        return {"hidden": hidden, "out": model.decode(hidden)}

    x = torch.randn(4, 3)
    frozen = StructuredPruner(Steps(), x, "activation", 0.5, forward_fn=run)
    assert not frozen.groups  # the hidden values are an output here
    pruner: Any = StructuredPruner(
        Steps(), x, "activation", 0.5, forward_fn=run, output_transform=lambda output: output["out"]
    )
    pruner.collect_activations([x], progress=False)
    pruned = pruner.prune()
    assert pruned.encode.out_features == 4
    assert pruner.report().metrics["pruned"].parameters == count_numbers(pruned)
    assert calls


@pytest.mark.parametrize(
    "around",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)
def test_the_callers_context_does_not_matter(around: Any) -> None:
    model = make_model()
    expected = make_pruner(model).prune()
    with around():
        pruner = make_pruner(model)
        pruned = pruner.prune()
    assert pruner.verification.passed and pruner.verification.dtype == "float64"
    for name, parameter in pruned.named_parameters():
        assert parameter.requires_grad and torch.equal(parameter, expected.get_parameter(name)), name
    pruned(example()).sum().backward()


def test_low_precision_is_kept_and_proven_in_double() -> None:
    model = make_model().bfloat16()
    pruner = StructuredPruner(model, example().bfloat16(), "activation", 0.5)
    pruner.collect_activations([example().bfloat16()], progress=False)
    pruned: Any = pruner.prune()
    assert pruned.left.weight.dtype is torch.bfloat16 and pruned.left.out_channels == 4
    assert pruner.verification is not None and pruner.verification.dtype == "float64"


def test_gradients_that_are_there_are_cut_with_their_parameters() -> None:
    model = make_model()
    model(example()).sum().backward()
    gradient = model.merge.weight.grad
    assert gradient is not None
    pruner = make_pruner(model, inplace=True)
    pruner.prune()
    assert pruner.plan is not None
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.shape == parameter.shape, name
    rows, columns = (list(pruner.plan.kept("merge.weight", dim)) for dim in (0, 1))
    assert model.merge.weight.grad is not None
    assert torch.equal(model.merge.weight.grad, gradient[rows][:, columns])


def test_it_prints_itself() -> None:
    pruner = make_pruner()
    assert repr(pruner) == "StructuredPruner(TwoBranches, 3 groups, 30 units, not pruned yet)"
    pruner.prune()
    assert "pruned)" in repr(pruner) and "not pruned yet" not in repr(pruner)
    assert "left" in str(pruner.make_plan())


def test_looking_changes_nothing() -> None:
    model = make_model()
    before = Untouched(model)
    pruner = make_pruner(model, importance="activation")
    pruner.collect_activations(make_loader(), progress=False)
    scores = pruner.score_groups()
    plan = pruner.make_plan()
    assert pruner.plan is None and pruner.pruned is None
    assert set(scores) == {"left", "right", "merge"} == {group.name for group in plan.groups}
    before.check()
    assert pruner.make_plan() == plan


# ------------------------------------------------------------------------------------------------------- the report


def test_the_report_agrees_with_a_recount(quick_report: None) -> None:
    model = make_model()
    pruner = make_pruner(model, ratio=0.3, importance="weight_activation")
    pruner.collect_activations(make_loader(), progress=False)
    scores = pruner.score_groups()
    pruned = pruner.prune()
    report = pruner.report(model_name="two branches")
    assert pruner.plan is not None

    assert report.model_name == "two branches"
    assert report.metrics["original"].parameters == count_numbers(model)
    assert report.metrics["pruned"].parameters == count_numbers(pruned)
    for model_now, stage in ((model, "original"), (pruned, "pruned")):
        by_hand = 2 * (
            64 * 9 * 3 * (model_now.left.out_channels + model_now.right.out_channels)
            + 36 * 9 * model_now.merge.in_channels * model_now.merge.out_channels
            + model_now.fc.in_features * 4
        )
        assert report.metrics[stage].macs == by_hand
    assert report.budget.params == pytest.approx(1 - count_numbers(pruned) / count_numbers(model))
    units = {"left": 8, "right": 12, "merge": 10}
    removed = {"left": 2, "right": 4, "merge": 3}
    assert report.budget.asked == 0.3 and report.budget.target == "channels"
    assert report.budget.channels == report.budget.reached == pytest.approx(sum(removed.values()) / 30)

    assert [group.name for group in report.groups] == list(units)
    for group in report.groups:
        own = scores[group.name]
        assert own is not None and group.scores == pytest.approx(own.tolist())
        assert group.units_before == units[group.name] and len(group.removed) == removed[group.name]
        assert set(group.removed) == set(own.argsort()[: len(group.removed)].tolist())
        assert group.cut is not None and group.cut[0] <= group.cut[1]
        assert group.asked_ratio == 0.3
        for layer in group.layers:
            assert layer.before == model.state_dict()[layer.parameter].shape[layer.dim]
            assert layer.after == pruned.state_dict()[layer.parameter].shape[layer.dim]
            kept = list(pruner.plan.kept(layer.parameter, layer.dim))
            assert len(kept) == layer.after
    layers = {layer.parameter for layer in report.groups[0].layers if layer.dim == 0}
    assert layers >= {"left.weight", "left.bias", "norm.weight", "norm.running_mean"}
    kept = [index for index in range(8) if index not in report.groups[0].removed]
    assert torch.equal(pruned.left.weight, model.left.weight[kept])

    reasons = {layer: frozen.reason for frozen in report.frozen for layer in frozen.layers}
    assert reasons["fc"] == "the output of the model"
    assert report.proof.passed and report.proof.max_relative_error is not None
    assert report.proof.max_relative_error < 1e-9 and report.proof.dtype == "float64"
    assert report.settings["calibration_samples"] == 12
    assert report.settings["importance"] == "weight_activation"


def test_the_report_of_a_cut_in_place_still_knows_the_original(quick_report: None) -> None:
    model = make_model()
    whole = count_numbers(model)
    pruner = make_pruner(model, inplace=True)
    pruner.prune()
    report = pruner.report()
    assert report.metrics["original"].parameters == whole
    assert report.metrics["pruned"].parameters == count_numbers(model)
    assert report.groups[0].units_before == 8 and report.groups[0].layers[0].before == 8


def test_the_report_says_by_how_much_and_why_the_budget_was_missed(quick_report: None) -> None:
    pruner = make_pruner(ratio=0.9, max_pruning_ratio=0.5)
    pruner.prune()
    budget = pruner.report().budget
    assert budget.asked == 0.9 and budget.reached == 0.5
    assert "max_pruning_ratio holds groups back" in budget.note
    pruner = make_pruner(ratio=0.5)
    pruner.prune()
    assert pruner.report().budget.note == ""


def test_the_report_shows_all_measures_whatever_the_target(quick_report: None) -> None:
    pruner = make_pruner(ratio=0.5, target="macs")
    pruned = pruner.prune()
    budget = pruner.report().budget
    assert budget.target == "macs" and budget.reached == budget.macs
    assert budget.macs == pytest.approx(0.5, abs=0.05)
    assert budget.params == pytest.approx(1 - count_numbers(pruned) / count_numbers(pruner.model))
    assert 0 < budget.channels < 0.5


def test_latency_is_measured_before_and_after() -> None:
    pruner = make_pruner()
    pruner.prune()
    report = pruner.report()
    for stage in ("original", "pruned"):
        latency = report.metrics[stage].latency
        assert latency is not None and latency.median_ms > 0 and latency.num_threads == 1
    assert report.budget.latency is not None


def test_measurements_of_ones_own_go_into_the_report() -> None:
    pruner = make_pruner()
    pruner.prune()
    metrics = {
        "original": ModelMetrics(parameters=100, size_mb=1.0, macs=1000, accuracy=90.0),
        "pruned": ModelMetrics(parameters=50, size_mb=0.5, macs=400, accuracy=80.0),
        "fine-tuned": ModelMetrics(parameters=50, size_mb=0.5, macs=400, accuracy=89.0),
    }
    report = pruner.report(metrics=metrics, history=[{"epoch": 1, "loss": 0.5}])
    assert report.metrics == metrics and report.history == [{"epoch": 1, "loss": 0.5}]
    assert (report.budget.params, report.budget.macs) == (0.5, 0.6)
    assert "89" in str(report)


def test_measurements_of_no_stage_are_refused() -> None:
    pruner = make_pruner()
    pruner.prune()
    with pytest.raises(InputError, match="metrics holds no stage"):
        pruner.report(metrics={})


def test_a_saved_report_comes_back_as_it_was(tmp_path: Path, quick_report: None) -> None:
    pruner = make_pruner(importance=MagnitudeImportance(1), layer_pruning_ratios={"left": 0.25, nn.Linear: 0.0})
    pruner.prune()
    report = pruner.report()
    loaded = Report.load(report.save(tmp_path / "report.json"))
    assert loaded == report
    assert loaded.settings["layer_pruning_ratios"] == {"left": 0.25, "Linear": 0.0}
    assert loaded.settings["importance"] == "MagnitudeImportance(p=1)"
    for suffix in (".html", ".md"):
        text = report.save(tmp_path / f"report{suffix}").read_text(encoding="utf-8")
        assert "TwoBranches" in text and "merge" in text
    assert json.loads(json.dumps(report.to_dict()))["groups"][0]["name"] == "left"


def test_summary_speaks_turkish(capsys: pytest.CaptureFixture[str], quick_report: None) -> None:
    pruner = make_pruner()
    pruner.prune()
    pruner.summary()
    english = capsys.readouterr().out
    pruner.summary(language="tr")
    turkish = capsys.readouterr().out
    assert english != turkish and "TwoBranches" in turkish
    with pytest.raises(InputError, match="language"):
        pruner.summary(language="xx")


def test_there_is_nothing_to_report_before_pruning() -> None:
    for ask in (make_pruner().report, make_pruner().summary):
        with pytest.raises(InputError, match=r"nothing to report yet: call prune\(\) first"):
            ask()


# ------------------------------------------------------------------------------------------- planted bugs are caught


def shift_cuts_of(parameter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slicing of one parameter takes each index one further than the plan says."""
    right = cleanai.slicing._cut

    def wrong(tensor: Tensor, cuts: Any, *rest: Any) -> Tensor:
        if any(cut.parameter == parameter for cut in cuts):
            tensor = tensor.roll(1, dims=cuts[0].dim)
        return right(tensor, cuts, *rest)

    monkeypatch.setattr(cleanai.slicing, "_cut", wrong)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    ("parameter", "groups"), [("left.bias", ["left"]), ("merge.weight", ["left", "merge"]), ("fc.weight", ["merge"])]
)
def test_a_wrong_cut_is_found_named_and_taken_back(
    parameter: str, groups: list[str], inplace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    pruner = make_pruner(model, inplace=inplace)
    before = Untouched(model)
    shift_cuts_of(parameter, monkeypatch)
    with pytest.raises(VerificationError, match="NOT equal to the masked original") as caught:
        pruner.prune()
    message = str(caught.value)
    assert f"{parameter} does not hold the values that the plan keeps" in message
    assert any(f"the group at fault is {group}. The model has not been changed." in message for group in groups)
    before.check()
    assert pruner.pruned is None and pruner.plan is None
    with pytest.raises(InputError, match="nothing to report"):
        pruner.report()


def test_the_same_wrong_cut_passes_unseen_without_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong cut runs, with the right shapes: only the proof sees it."""
    pruner = make_pruner(verify=False)
    shift_cuts_of("left.bias", monkeypatch)
    assert pruner.prune()(example()).shape == (2, 4)


def test_a_label_map_that_is_one_off_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A convolution's rule that hands on its output labels rotated by one: consumers lose the wrong columns."""
    name = "Convolution"
    right = cleanai.rules.RULES[name]

    def wrong(context: Any, op: Any, inputs: Any) -> Any:
        outputs = right(context, op, inputs)
        labels = outputs[0].fields[1]
        outputs[0].fields[1] = torch.from_numpy(labels).roll(1, 1).numpy()
        return outputs

    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    before = Untouched(model)
    monkeypatch.setitem(cleanai.rules.RULES, name, wrong)
    pruner = StructuredPruner(model, example(), "l2", 0.25)
    with pytest.raises(VerificationError, match=r"the group at fault is 0\. The model has not been changed"):
        pruner.prune()
    before.random = torch.get_rng_state()
    before.check()


def test_a_pruned_model_that_does_not_run_is_refused() -> None:
    class Stubborn(TwoBranches):
        """Insists on its sizes, but not on the stand-ins without data on which a cut is tried."""

        def forward(self, x: Tensor) -> Tensor:
            if x.device.type != "meta" and self.merge.out_channels != 10:
                raise RuntimeError("built for ten channels")
            return super().forward(x)

    model = Stubborn()
    pruner = make_pruner(model, inplace=True)
    before = Untouched(model)
    with pytest.raises(
        VerificationError, match=r"does not run: RuntimeError: built for ten.*the group at fault is merge"
    ):
        pruner.prune()
    before.check()


# ------------------------------------------------------------------------------------------------------------- steps


def train(model: nn.Module) -> None:
    """One step of plain training: every parameter and running statistic moves."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x, y = next(iter(make_loader()))
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    model.zero_grad()


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("inplace", [False, True])
def test_what_a_callback_trains_survives_into_the_next_step(inplace: bool) -> None:
    model = make_model()
    fresh, before = copy.deepcopy(model), Untouched(model)
    seen: list[PruningStep] = []
    left: list[dict[str, Tensor]] = []

    def callback(step: PruningStep) -> None:
        if left:  # what the last call left is there, less what has gone since
            last = slice_to(step, left[-1])
            assert all(torch.equal(last[name], tensor) for name, tensor in step.model.state_dict().items())
        train(step.model)
        seen.append(step)
        left.append({name: tensor.clone() for name, tensor in step.model.state_dict().items()})

    def slice_to(step: PruningStep, state: dict[str, Tensor]) -> dict[str, Tensor]:
        earlier = slice_model(copy.deepcopy(fresh), seen[-1].plan)
        earlier.load_state_dict(state)
        for cut in step.plan.cuts:
            done = {c.kept for c in seen[-1].plan.cuts if (c.parameter, c.dim) == (cut.parameter, cut.dim)}
            was = done.pop() if done else tuple(range(cut.size))
            index = torch.tensor([was.index(kept) for kept in cut.kept])
            state = {**state, cut.parameter: state[cut.parameter].index_select(cut.dim, index)}
        return state

    pruner = make_pruner(model, 0.5, iterative_steps=3, inplace=inplace)
    pruned = pruner.prune(callback)
    assert [(step.number, step.steps) for step in seen] == [(1, 3), (2, 3), (3, 3)]
    assert all(step.model is pruned for step in seen) and (pruned is model) == inplace
    assert [round(step.asked, 6) for step in seen] == [round(0.5 * n / 3, 6) for n in (1, 2, 3)]
    assert [step.reached for step in seen] == [step.plan.dropped_units / step.plan.units for step in seen]
    assert all(step.verification is not None and step.verification.passed for step in seen)
    assert seen[-1].plan == pruner.plan and pruner.verification.passed
    assert not any(module.training for module in pruned.modules())
    for name, tensor in pruned.state_dict().items():
        assert torch.equal(tensor, left[-1][name])
    again = slice_model(fresh, Plan.from_json(pruner.plan.to_json()))
    assert shapes(again) == shapes(pruned)
    if not inplace:
        before.random = torch.get_rng_state()
        before.check()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_an_exception_in_a_callback_takes_everything_back(inplace: bool, steps: int) -> None:
    class Stop(Exception):
        pass

    model = make_model()
    model.fc.bias.grad = torch.ones(4)
    before = Untouched(model)

    def callback(step: PruningStep) -> None:
        train(step.model)
        if step.number == steps:
            step.model.requires_grad_(False)
            raise Stop

    pruner = make_pruner(model, 0.5, iterative_steps=steps, inplace=inplace)
    with pytest.raises(Stop):
        pruner.prune(callback)
    before.random = torch.get_rng_state()  # the data loader of the callback draws
    before.check()
    assert torch.equal(model.fc.bias.grad, torch.ones(4))
    assert pruner.pruned is None and pruner.plan is None
    assert pruner.prune()(example()).shape == (2, 4)


def test_a_callback_may_train_but_not_rebuild() -> None:
    def rebuild(step: Any) -> None:
        step.model.fc = nn.Linear(step.model.fc.in_features, 7)

    def poison_it(step: Any) -> None:
        with torch.no_grad():
            step.model.fc.weight.fill_(float("nan"))

    for callback, words in ((rebuild, "changed the shape of fc.weight from"), (poison_it, "fc.weight holds NaN")):
        model = make_model()
        before = Untouched(model)
        pruner = make_pruner(model, inplace=True)
        before.random = torch.get_rng_state()
        with pytest.raises(InputError, match=words):
            pruner.prune(callback)
        before.random = torch.get_rng_state()
        before.check()
    with pytest.raises(InputError, match="callback is 3; give a function of a PruningStep"):
        make_pruner().prune(3)


@pytest.mark.parametrize("options", [{}, {"global_pruning": True}, {"target": "macs", "schedule": "geometric"}])
def test_the_preview_is_what_happens(options: dict[str, Any]) -> None:
    pruner = make_pruner(iterative_steps=3, **options)
    before = Untouched(pruner.model)
    preview = pruner.make_plan()
    before.check()
    pruner.prune()
    assert preview == pruner.plan


def test_the_schedule_says_how_far_each_step_goes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3)).eval()
    for schedule, left in (
        ("linear", [52, 40, 28, 16]),
        ("geometric", [45, 32, 23, 16]),
        ("cubic", [36, 22, 17, 16]),
        ("one_shot", [16, 16, 16, 16]),
        (lambda step: step**2 / 16, [61, 52, 37, 16]),
    ):
        widths: list[int] = []
        pruner: Any = StructuredPruner(
            model, torch.randn(2, 4), "l2", 0.75, iterative_steps=4, schedule=schedule, layer_pruning_ratios={"0": 0.75}
        )
        pruner.prune(lambda step, widths=widths: widths.append(step.model[0].out_features))
        assert widths == left, schedule
        assert pruner.plan.settings["schedule"] == (schedule if isinstance(schedule, str) else "<lambda>")


@pytest.mark.parametrize("inplace", [False, True])
def test_a_wrong_cut_in_a_later_step_is_named_and_everything_taken_back(
    inplace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    before = Untouched(model)

    def callback(step: PruningStep) -> None:
        train(step.model)
        if step.number == 2:
            shift_cuts_of("fc.weight", monkeypatch)

    pruner = make_pruner(model, 0.6, iterative_steps=3, inplace=inplace)
    with pytest.raises(VerificationError, match=r"the group at fault is merge\. The model has not been changed"):
        pruner.prune(callback)
    before.random = torch.get_rng_state()
    before.check()


class Recollecting:
    """The mean activation, of the model as it is before each step."""

    needs_activations = True
    recollect = True

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, float]] = []

    def __call__(self, group: Any) -> Tensor:
        ((layer, found),) = group.activations("output")[:1]
        self.seen.append((layer, found.count, float(found.absolute.sum())))
        return found.mean_absolute[: group.size] + torch.arange(group.size) * 1e-6


def test_statistics_are_collected_afresh_where_the_criterion_asks_for_it() -> None:
    from cleanai.calibration import collect_statistics

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    loader = [torch.randn(16, 4), torch.randn(16, 4)]
    expected: list[dict[str, float]] = []

    def callback(step: Any) -> None:
        with torch.no_grad():
            step.model[0].weight.mul_(3.0)
        fresh = collect_statistics(step.model, loader, progress=False)
        expected.append({path: float(fresh.sides[path, "output"].absolute.sum()) for path in ("0", "2")})

    scorer = Recollecting()
    pruner: Any = StructuredPruner(model, torch.randn(1, 4), scorer, 0.5, iterative_steps=3)
    pruner.collect_activations(loader, progress=False)
    pruner.prune(callback)
    by_layer = {layer: [total for path, _, total in scorer.seen if path == layer] for layer in ("0", "2")}
    for layer, totals in by_layer.items():
        assert len(totals) == 3 and totals[1:] == pytest.approx([before[layer] for before in expected[:2]])
    scorer.recollect = False  # now they are sliced from step to step
    scorer.seen.clear()
    pruner.prune(callback)
    assert [total for path, _, total in scorer.seen if path == "0"][1] < expected[0]["0"] / 2


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("target", ["channels", "params"])
def test_blocks_go_in_the_first_step_and_all_steps_are_one_plan(inplace: bool, target: str) -> None:
    torch.manual_seed(0)
    model: Any = cifar_resnet(14).eval()
    fresh, x = copy.deepcopy(model), torch.randn(2, 3, 8, 8)
    seen: list[PruningStep] = []
    pruner = StructuredPruner(
        model, x, "l2", 0.5, target=target, depth_pruning_ratio=0.25, iterative_steps=2, inplace=inplace
    )
    pruned = pruner.prune(lambda step: (seen.append(step), nudge(step.model)))
    assert seen[0].plan.dropped_blocks and seen[0].plan.dropped_blocks == seen[1].plan.dropped_blocks
    assert pruner.plan == seen[1].plan and seen[1].reached == pytest.approx(0.5, abs=0.02)
    assert shapes(slice_model(fresh, seen[1].plan)) == shapes(pruned)
    if target == "params":
        whole = count_numbers(cifar_resnet(14))
        assert [1 - count_numbers(pruned) / whole] == pytest.approx([seen[1].reached])


def nudge(model: nn.Module) -> None:
    """Every parameter moves; the callback's own business."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)


def test_a_loader_that_can_be_gone_through_once_is_refused_before_anything_is_cut() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    before = Untouched(model)
    pruner: Any = StructuredPruner(model, torch.randn(1, 4), Recollecting(), 0.5, iterative_steps=2, inplace=True)
    with pytest.raises(InputError, match=r"before every step: call collect_activations\(loader\) first"):
        pruner.prune()
    pruner.collect_activations(iter([torch.randn(3, 4)]), progress=False)
    with pytest.raises(InputError, match=r"gone through only once; give a DataLoader or a list"):
        pruner.prune()
    before.random = torch.get_rng_state()
    before.check()
    pruner.collect_activations([torch.randn(3, 4)], progress=False)
    assert pruner.prune()[0].out_features == 4


# --------------------------------------------------------------------------------------------------------- bad input

Spoil = Callable[[nn.Module], None]


def poison(tensor: str, value: float) -> Spoil:
    def spoil(model: nn.Module) -> None:
        with torch.no_grad():
            model.state_dict(keep_vars=True)[tensor].view(-1)[3] = value

    return spoil


BAD_ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "ratio of one": ({"pruning_ratio": 1.0}, r"pruning_ratio is 1.0; it must lie in \[0, 1\): 0.3 removes 30 %"),
    "ratio above one": ({"pruning_ratio": 30}, r"pruning_ratio is 30; it must lie in \[0, 1\)"),
    "negative ratio": ({"pruning_ratio": -0.1}, r"pruning_ratio is -0.1; it must lie in \[0, 1\)"),
    "ratio that is no number": ({"pruning_ratio": float("nan")}, "pruning_ratio is nan"),
    "ratio as text": ({"pruning_ratio": "0.3"}, "pruning_ratio is '0.3'"),
    "target": ({"target": "flops"}, "target is 'flops'; use 'channels' or 'params' or 'macs'"),
    "schedule": ({"schedule": "cosine"}, "no schedule is named 'cosine'; the names are linear, geometric"),
    "costs of one group": ({"cost_aware": True}, "use it with global_pruning=True or isomorphic=True"),
    "no rounds": ({"iterative_steps": 0}, "iterative_steps is 0; it must be a whole number of at least 1"),
    "half a round": ({"iterative_steps": 1.5}, "iterative_steps is 1.5; it must be a whole number"),
    "min_channels": ({"min_channels": 0}, "min_channels is 0; at least 1 channel must stay"),
    "round_to": ({"round_to": 0}, "round_to is 0; it must be at least 1"),
    "round_to as a share": ({"round_to": 0.5}, "round_to is 0.5"),
    "limits as text": ({"max_pruning_ratio": "0.5"}, "max_pruning_ratio is '0.5'"),
    "part of a channel": ({"min_channels": 2.5}, "min_channels is 2.5"),
    "max_pruning_ratio": ({"max_pruning_ratio": 0}, "max_pruning_ratio is 0"),
    "importance": ({"importance": "magnitde"}, "no importance is named 'magnitde'; the names are"),
    "unknown layer": ({"layer_pruning_ratios": {"mergee": 0.5}}, "no layer named 'mergee'; did you mean 'merge'"),
    "unknown ignored": (
        {"ignored_layers": ["lef"]},
        "ignored_layers: the model has no layer named 'lef'; did you mean 'left'",
    ),
    "unknown type": ({"ignored_layers": [nn.LSTM]}, "the model has no layer of the type LSTM"),
    "not a layer": ({"ignored_layers": [7]}, "ignored_layers: 7 is no module, name or module type"),
    "layer ratio": ({"layer_pruning_ratios": {"left": 1.5}}, r"layer_pruning_ratios\['left'\] is 1.5"),
    "the classifier": ({"layer_pruning_ratios": {"fc": 0.5}}, "'fc' cannot be pruned: the output of the model"),
    "an ignored layer asked for": (
        {"layer_pruning_ratios": {"left": 0.5}, "ignored_layers": ["merge"]},
        "'left' cannot be pruned: it reaches the ignored layer merge",
    ),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_a_bad_argument_is_refused_and_nothing_changes(case: str) -> None:
    options, words = BAD_ARGUMENTS[case]
    model = make_model()
    before = Untouched(model)
    arguments: dict[str, Any] = {"importance": "l2", "pruning_ratio": 0.5, "inplace": True, **options}
    with pytest.raises(InputError, match=words):
        StructuredPruner(model, example(), **arguments)
    before.check()


BAD_INPUTS: dict[str, tuple[Any, str]] = {
    "wrong channels": (lambda: torch.randn(2, 4, 8, 8), r"example_inputs do not fit the model.*left.*(4|channels)"),
    "too many": (lambda: (example(), example()), "example_inputs do not fit the model.*positional argument"),
    "wrong keyword": (lambda: {"y": example()}, "example_inputs do not fit the model.*unexpected keyword"),
    "nothing": (lambda: None, "example_inputs do not fit the model"),
    "too small": (lambda: torch.randn(2, 3, 2, 2), "example_inputs do not fit the model.*merge"),
    "whole numbers": (lambda: torch.ones(2, 3, 8, 8, dtype=torch.int64), "example_inputs do not fit the model"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_example_inputs_that_do_not_fit_are_refused_and_nothing_changes(case: str) -> None:
    make, words = BAD_INPUTS[case]
    model, inputs = make_model().train(), make()
    before = Untouched(model)
    with pytest.raises(InputError, match=words):
        StructuredPruner(model, inputs, "l2", 0.5, inplace=True)
    before.check()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "tensor", ["left.weight", "merge.bias", "norm.weight", "norm.running_mean", "norm.running_var"]
)
def test_weights_and_statistics_that_are_not_finite_are_refused(tensor: str, value: float) -> None:
    model = make_model()
    poison(tensor, value)(model)
    before = Untouched(model)
    with pytest.raises(InputError, match=f"{tensor} holds NaN or infinite values"):
        make_pruner(model, inplace=True)
    before.check()


def test_weights_that_became_nan_after_the_analysis_are_refused() -> None:
    model = make_model()
    pruner = make_pruner(model, inplace=True)
    poison("merge.weight", float("nan"))(model)
    before = Untouched(model)
    with pytest.raises(CleanAIError, match="NaN"):
        pruner.prune()
    before.check()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_refused_by_layer(value: float) -> None:
    model = make_model()
    pruner = make_pruner(model, inplace=True, importance="activation")
    before = Untouched(model)
    batch = example()
    batch[0, 0, 0, 0] = value
    with pytest.raises(InputError, match="the input of the layer left holds NaN or infinite values"):
        pruner.collect_activations([example(), batch], progress=False)
    assert pruner.statistics is None
    before.check()


@pytest.mark.parametrize("importance", ["activation", "wanda", "weight_activation"])
def test_missing_activations_are_asked_for(importance: str) -> None:
    model = make_model()
    pruner = make_pruner(model, inplace=True, importance=importance)
    before = Untouched(model)
    for use in (pruner.prune, pruner.score_groups, pruner.make_plan):
        with pytest.raises(InputError, match=rf"{importance} needs activations: call collect_activations\(loader\)"):
            use()
    before.check()


def test_an_empty_loader_is_refused() -> None:
    model = make_model()
    pruner = make_pruner(model, importance="activation", inplace=True)
    before = Untouched(model)
    with pytest.raises(InputError, match="the loader is empty"):
        pruner.collect_activations([], progress=False)
    before.check()


def test_batches_that_do_not_fit_are_refused() -> None:
    model = make_model().train()
    pruner = make_pruner(model, importance="activation")
    loader = [torch.randn(2, 5, 8, 8)]
    before = Untouched(model)
    with pytest.raises(InputError, match=r"cannot run on batch 0 of the loader.*hold what example_inputs holds"):
        pruner.collect_activations(loader, progress=False)
    before.check()


class NoGradient(TwoBranches):
    """An output that autograd knows nothing of."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


class Decision(TwoBranches):
    """Returns class numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(1)


@pytest.mark.parametrize("kind", [NoGradient, Decision])
def test_an_output_without_a_gradient_path_is_refused(kind: type[nn.Module]) -> None:
    model = kind()
    before = Untouched(model)
    with pytest.raises(TraceError, match=r"no output of the model depends on its parameters.*output_transform"):
        make_pruner(model)
    before.check()


def test_an_output_that_holds_no_tensor_is_refused() -> None:
    class Silent(TwoBranches):
        def forward(self, x: Tensor) -> Any:
            super().forward(x)
            return None

    with pytest.raises(TraceError, match="no output of the model depends on its parameters"):
        make_pruner(Silent())


@pytest.mark.parametrize("wrong", [torch.nn.functional.relu, {"weight": torch.ones(2)}, None, nn.Linear])
def test_what_is_no_module_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"model is a .*; give a torch\.nn\.Module"):
        StructuredPruner(wrong, example())


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_a_scripted_model_is_refused() -> None:
    scripted = torch.jit.trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 3))
    with pytest.raises(InputError, match=r"ScriptModule|torch\.jit"):
        StructuredPruner(scripted, torch.randn(2, 3), "l2", 0.5)


def test_lazy_layers_are_refused_by_name() -> None:
    model = nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU(), nn.LazyConv2d(4, 3))
    with pytest.raises(InputError, match=r"0\.weight is not initialised yet .*run the model once"):
        StructuredPruner(model, example())
    model(example())
    pruned: Any = StructuredPruner(model, example(), "l2", 0.5).prune()
    assert pruned[0].out_channels == 4


def test_a_forward_that_fails_says_where() -> None:
    class Broken(TwoBranches):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("missing table")

    model = Broken()
    before = Untouched(model)
    with pytest.raises(InputError, match=r"KeyError.*missing table"):
        make_pruner(model)
    before.check()


def test_a_model_that_cannot_be_copied_is_pruned_in_place() -> None:
    class Uncopyable(TwoBranches):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("holds a lock")

    model = Uncopyable()
    with pytest.raises(InputError, match=r"cannot be copied \(TypeError: holds a lock\); prune it with inplace=True"):
        make_pruner(model).prune()
    assert make_pruner(model, inplace=True).prune() is model


def test_a_model_without_anything_to_prune_says_so_in_its_plan(quick_report: None) -> None:
    model = nn.Linear(3, 2)
    pruner: Any = StructuredPruner(model, torch.randn(1, 3), "l2", 0.5)
    assert pruner.groups == ()
    assert torch.equal(pruner.prune().weight, model.weight)
    report = pruner.report()
    assert report.budget.reached == 0.0 and report.budget.note == "no group can be pruned"


def test_a_parameter_that_no_output_reaches_is_left_alone() -> None:
    class Spare(TwoBranches):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(10, 10)

    pruner = make_pruner(Spare())
    assert pruner.prune().unused.weight.shape == (10, 10)


def test_an_auxiliary_head_that_the_example_is_too_small_for_is_not_cut_off() -> None:
    """What only training reaches must still fit afterwards, or the layers it reads from must stay."""

    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)
            self.aux = nn.Conv2d(8, 4, 12)

        def forward(self, x: Tensor) -> Any:
            x = F.relu(self.conv(x))
            if self.training:
                return self.fc(x.mean((2, 3))), self.aux(x)
            return self.fc(x.mean((2, 3)))

    pruned = StructuredPruner(Auxiliary(), example(), "l2", 0.5).prune().train()
    main, aux = pruned(torch.randn(2, 3, 16, 16))
    assert main.shape == (2, 4) and aux.shape == (2, 4, 5, 5)


def test_analysis_alone_lists_groups_and_what_is_frozen() -> None:
    analysis = analyze_model(digits_resnet(), torch.randn(1, 1, 8, 8))
    assert [group.name for group in analysis.groups] == [
        "conv1",
        "block1.conv1",
        "block2.conv1",
        "block2.conv2",
        "block3.conv1",
    ]
    assert {frozen.reason for frozen in analysis.frozen} >= {"the output of the model"}
