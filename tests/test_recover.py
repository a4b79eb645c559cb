"""Recovery without training: closer to the original on unseen data, exact where that is possible, else as it was."""

from __future__ import annotations

import copy
import threading
from typing import Any

import nets_layers  # noqa: F401  (its networks are among the cases)
import pytest
import torch
from nets import CASES
from torch import Tensor, nn
from torch.nn import functional as F

from cleanai import InputError, StructuredPruner
from cleanai.inputs import call_model, output_tensors
from cleanai.models import cifar_resnet
from cleanai.recover import METHODS, _Repair, check_method, recover_model, solve_least_squares
from cleanai.slicing import slice_model
from cleanai.stages import find_norms, list_stages


def measure(model: nn.Module, reference: nn.Module, inputs: Any) -> float:
    """The squared error of all outputs on some inputs."""
    with torch.no_grad():
        pairs = zip(
            output_tensors(call_model(model, inputs)), output_tensors(call_model(reference, inputs)), strict=True
        )
        return sum(float((a.double() - b.double()).square().sum()) for a, b in pairs if a.is_floating_point())


def prune(net: nn.Module, batches: Any, method: str = "least_squares", ratio: float = 0.3, **options: Any) -> Any:
    """(the pruner, the model it made) with a method of recovery."""
    example = options.pop("example", None)
    callback = options.pop("callback", None)
    example = batches[0] if example is None else example
    pruner = StructuredPruner(net, example, pruning_ratio=ratio, recover=method, **options)
    pruner.collect_activations(batches, progress=False)
    return pruner, pruner.prune(callback)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def count_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def count_passes() -> int:
    return sum(type(thread).__module__ == "cleanai.lockstep" for thread in threading.enumerate())


def conv_net(seed: int = 0) -> Any:
    """Two blocks of different kinds behind each other."""
    return CASES["residual"].make(seed)


def images(count: int = 8, size: int = 32, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 3, 8, 8, generator=generator) for _ in range(count)]


# ------------------------------------------------------------------------------------------------------ least squares


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("shifted", [True, False])
def test_least_squares_equals_the_normal_equations_written_by_hand(groups: int, shifted: bool) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(groups, 50, 4).double() + 1, torch.randn(groups, 50, 3).double() - 2
    start = torch.randn(groups, 3, 4).double()
    weight, bias = solve_least_squares([x[:, :20], x[:, 20:]], [y[:, :20], y[:, 20:]], start, shifted, ridge=0.01)
    for group in range(groups):
        a, b = x[group], y[group]
        if shifted:
            a, b = a - a.mean(0), b - b.mean(0)
        square = a.T @ a / 50
        amount = 0.01 * (1 + 100 * 4 / 50) * square.diagonal().mean()
        expected = torch.linalg.inv(square + amount * torch.eye(4)) @ (a.T @ b / 50 + amount * start[group].T)
        assert torch.allclose(weight[group], expected.T, atol=1e-9)
        if bias is not None:
            assert torch.allclose(bias[group], y[group].mean(0) - weight[group] @ x[group].mean(0), atol=1e-9)
    assert (bias is None) is not shifted


def test_least_squares_finds_the_weights_that_made_the_targets() -> None:
    torch.manual_seed(0)
    x, true = torch.randn(2, 4000, 5).double(), torch.randn(2, 3, 5).double()
    weight, bias = solve_least_squares([x], [x @ true.mT + 7], torch.zeros(2, 3, 5), True, ridge=1e-9)
    assert torch.allclose(weight, true, atol=1e-6)
    assert bias is not None and torch.allclose(bias, torch.full((2, 3), 7.0).double(), atol=1e-6)


def test_least_squares_stays_where_the_data_say_nothing() -> None:
    start = torch.randn(1, 3, 4).double()
    x, y = torch.zeros(1, 9, 4), torch.randn(1, 9, 3)
    weight, bias = solve_least_squares([x], [y], start, True)
    assert torch.allclose(weight, start) and bias is not None and torch.allclose(bias, y.double().mean(1))
    x[..., 0] = torch.randn(9)  # only one column is known
    weight, _ = solve_least_squares([x], [y], start, True)
    assert torch.allclose(weight[..., 1:], start[..., 1:]) and not torch.allclose(weight[..., 0], start[..., 0])


# ----------------------------------------------------------------------------------------------------- unseen data

# What cannot be run here without a warning of torch's own, or computes without any layer.
WARNS = ("checkpointed_reentrant", "lstm_projected")
CLEARLY = (
    *("plain_cnn", "residual", "option_a", "dense", "in_place", "concat_group_norm", "unet", "grouped", "depthwise"),
    *("grouped_transposed", "transposed", "conv1d", "conv3d", "layer_norm", "multihead_attention", "encoder_layer"),
    *("attention_separate", "called_twice", "two_inputs", "dict_inputs", "named_outputs", "frozen_parameters", "lstm"),
    *("no_bias", "weight_norm", "embedding", "squeeze_excite", "gated_mlp", "gru"),
)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.prunes and name not in WARNS])
def test_the_output_comes_closer_to_the_original_on_unseen_data(name: str) -> None:
    case = CASES[name]
    net = case.make()
    torch.manual_seed(5)
    batches = [case.inputs(24) for _ in range(6)]
    test = case.inputs(32)
    before, hooks, options = state_of(net), count_hooks(net), {"example": case.inputs(2)}
    plain = StructuredPruner(net, options["example"], pruning_ratio=0.3).prune()
    pruner = StructuredPruner(net, options["example"], pruning_ratio=0.3)
    made = pruner.prune()
    kinds = {name: (value.dtype, value.requires_grad) for name, value in made.named_parameters()}
    random = torch.get_rng_state()
    recovery = recover_model(
        net,
        made,
        pruner.plan,  # ty: ignore[invalid-argument-type]
        pruner.analysis.coupling,
        [(*each, None) if type(each) is tuple else each for each in batches],
        options["example"],
        progress=False,
    )
    assert torch.equal(random, torch.get_rng_state())
    assert same(before, state_of(net)) and count_hooks(net) == count_hooks(made) == hooks and count_passes() == 0
    assert not any(module.training for module in made.modules())
    assert {name: (value.dtype, value.requires_grad) for name, value in made.named_parameters()} == kinds
    old, new = measure(plain, net, test), measure(made, net, test)
    assert new <= old * (0.6 if name in CLEARLY else 1.0 + 1e-6) + 1e-9, f"{old} -> {new}"
    assert all(block.after <= block.before for block in recovery.blocks)
    assert all(reason for reason in recovery.skipped.values())


@pytest.mark.parametrize(
    ("name", "layer", "reason"),
    [
        ("lstm", "lstm", "plain convolution or linear"),
        ("gru", "gru", "plain convolution or linear"),
        ("weight_norm", "4", "plain convolution or linear"),
        ("tied_linears", "fc1", "shared with another layer"),
        ("called_twice", "shared", "not called exactly once"),
        ("unused", "spare", "not called exactly once"),
        ("bare_parameters", "kernel", "plain convolution or linear"),
    ],
)
def test_what_cannot_be_repaired_is_named(name: str, layer: str, reason: str) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    pruner, _ = prune(case.make(), [case.inputs(16) for _ in range(3)])
    assert reason in pruner.recovery.skipped[layer]


def test_an_option_a_resnet_keeps_what_it_does() -> None:
    torch.manual_seed(0)
    net = cifar_resnet(8).eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
    batches, test = images(6, 16), torch.randn(64, 3, 8, 8)
    plain = StructuredPruner(net, batches[0], pruning_ratio=0.4).prune()
    pruner, made = prune(net, batches, ratio=0.4)
    assert measure(made, net, test) < 0.3 * measure(plain, net, test)
    assert pruner.recovery.samples == 96 and not pruner.recovery.skipped
    assert len(pruner.recovery.to_dict()["blocks"]) == len(pruner.recovery.blocks) > 1


# ------------------------------------------------------------------------------------------------------ exact recovery


def duplicate(net: Any, first: int, reader: int, copies: list[tuple[int, int]]) -> None:
    """Makes some output channels of one layer copies of others, read with other weights by the next."""
    with torch.no_grad():
        for old, new in copies:
            net[first].weight[new] = 2 * net[first].weight[old]
            net[first].bias[new] = 2 * net[first].bias[old]


def test_a_channel_that_others_make_up_is_recovered_exactly() -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    duplicate(net, 0, 2, [(0, 6), (1, 7)])

    def lowest(group: Any) -> Tensor:
        return torch.tensor([1.0, 1, 1, 1, 1, 1, 0, 0])[: group.size]

    batches = [torch.randn(200, 6).double() for _ in range(6)]
    options: Any = {"importance": lowest, "ratio": 0.0, "layer_pruning_ratios": {"0": 0.25}}
    plain = prune(net, batches, "none", **options)[1]
    pruner, made = prune(net, batches, **options)
    assert pruner.plan.groups[0].dropped == (6, 7)
    test = torch.randn(100, 6).double()
    assert measure(made, net, test) < 1e-5 * measure(plain, net, test)


def test_a_convolution_behind_a_norm_without_bias_is_recovered_exactly() -> None:
    """What the layer cannot shift, the mean that the norm behind it takes off does; they lie outside of any block."""
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False), nn.BatchNorm2d(4))
    net = net.extend([nn.ReLU(), nn.Conv2d(4, 2, 1)]).double().eval()
    with torch.no_grad():
        net[0].weight[7] = 0.0
        net[0].bias[7] = 3.0  # always on: a constant that the mean takes over
        net[3].running_mean.normal_()
        net[3].running_var.uniform_(0.5, 1.5)

    def lowest(group: Any) -> Tensor:
        return torch.tensor([1.0] * 7 + [0.0])[: group.size]

    batches = [each.double() for each in images(6, 32)]
    options: Any = {"importance": lowest, "ratio": 0.0, "layer_pruning_ratios": {"0": 0.125}}
    plain = prune(net, batches, "none", **options)[1]
    pruner, made = prune(net, batches, **options)
    assert pruner.plan.groups[0].dropped == (7,)
    test = torch.randn(64, 3, 8, 8).double()
    assert measure(made, net, test) < 1e-3 * measure(plain, net, test)
    assert not any(block.note for block in pruner.recovery.blocks)


# ------------------------------------------------------------------------------------------------- nothing but a repair


def test_none_changes_nothing_and_asks_for_nothing() -> None:
    net = conv_net()
    example = images(1, 2)[0]
    first = StructuredPruner(net, example, pruning_ratio=0.3).prune()
    second = StructuredPruner(net, example, pruning_ratio=0.3, recover="none")
    assert same(state_of(first), state_of(second.prune())) and second.recovery is None
    assert recover_model(net, first, second.plan, second.analysis.coupling, [], example, method="none").samples == 0  # ty: ignore[invalid-argument-type]


@pytest.mark.parametrize("method", ["batchnorm", "bias", "least_squares"])
@pytest.mark.parametrize("name", ["plain_cnn", "encoder_layer", "lstm"])
def test_where_nothing_was_cut_nothing_is_broken(name: str, method: str) -> None:
    case = CASES[name]
    net = case.make()
    torch.manual_seed(0)
    batches = [case.inputs(16) for _ in range(3)]
    pruner, made = prune(net, batches, method, ratio=0.0)
    assert same(state_of(net), state_of(made)) and not pruner.recovery.blocks


def test_methods_are_checked_and_listed() -> None:
    assert METHODS == ("none", "batchnorm", "bias", "least_squares") and check_method("bias") == "bias"
    with pytest.raises(InputError, match=r"recover is 'lsq'; use 'none', .* or 'least_squares'"):
        StructuredPruner(conv_net(), images(1)[0], recover="lsq")
    with pytest.raises(InputError, match="call collect_activations"):
        StructuredPruner(conv_net(), images(1)[0], recover="bias").prune()
    pruner = StructuredPruner(conv_net(), images(1)[0], recover="bias")
    pruner.collect_activations(iter(images()), progress=False)
    with pytest.raises(InputError, match="gone through only once"):
        pruner.prune()


@pytest.mark.parametrize("method", ["batchnorm", "bias", "least_squares"])
@pytest.mark.parametrize("broken", ["nan", "shape", "late", "empty"])
def test_a_failure_leaves_both_models_as_they_were(method: str, broken: str) -> None:
    net = conv_net().train()
    example = images(1)[0]
    pruner = StructuredPruner(net, example, pruning_ratio=0.3)
    plan = pruner.make_plan()
    made = slice_model(copy.deepcopy(net), plan)
    next(iter(made.modules())).training = False  # any mixture of modes
    batches: list[Any] = images(4)
    if broken == "nan":
        batches[2][0, 0, 0, 0] = float("nan")
    elif broken == "shape":
        batches[1] = torch.randn(4, 5, 8, 8)
    elif broken == "late":
        batches[3] = "no tensor"
    else:
        batches = []
    before = [(state_of(m), [p.training for p in m.modules()], count_hooks(m)) for m in (net, made)]
    tensors = [id(value) for value in (*net.parameters(), *made.parameters(), *made.buffers())]
    random = torch.get_rng_state()
    with pytest.raises(InputError, match=r"batch|NaN"):
        recover_model(net, made, plan, pruner.analysis.coupling, batches, example, method=method, progress=False)
    after = [(state_of(m), [p.training for p in m.modules()], count_hooks(m)) for m in (net, made)]
    assert all(same(a[0], b[0]) and a[1:] == b[1:] for a, b in zip(before, after, strict=True))
    assert tensors == [id(value) for value in (*net.parameters(), *made.parameters(), *made.buffers())]
    assert torch.equal(random, torch.get_rng_state()) and count_passes() == 0


def test_an_error_in_the_midst_takes_back_what_was_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    net = conv_net()
    pruner = StructuredPruner(net, images(1)[0], pruning_ratio=0.3)
    plan = pruner.make_plan()
    made = slice_model(copy.deepcopy(net), plan)
    before = state_of(made)

    def fail(self: Any) -> None:
        assert not same(before, state_of(made))
        raise KeyboardInterrupt

    monkeypatch.setattr(_Repair, "anchor_norms", fail)
    with pytest.raises(KeyboardInterrupt):
        recover_model(net, made, plan, pruner.analysis.coupling, images(), images(1)[0], progress=False)
    assert same(before, state_of(made)) and count_passes() == count_hooks(made) == 0


def test_modes_hooks_and_gradients_stay_and_the_caller_may_be_in_inference_mode() -> None:
    net = conv_net().train()
    batches = images()
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    with torch.inference_mode():
        plain = prune(net, batches, "none")[1]
        made = prune(net, batches)[1]
    assert all(module.training for module in (*net.modules(), *made.modules()))
    assert all(p.grad is not None and bool((p.grad == 1).all()) for p in net.parameters())
    assert all(p.requires_grad and not p.is_inference() for p in made.parameters())
    test = torch.randn(64, 3, 8, 8)
    for model in (net, plain, made):
        model.eval()
    assert measure(made, net, test) < 0.5 * measure(plain, net, test)


def test_buffers_that_a_forward_writes_to_stay_in_both() -> None:
    case = CASES["running_buffer"]
    net = case.make()
    pruner = StructuredPruner(net, case.inputs(2), pruning_ratio=0.3)
    made = pruner.prune()
    before = [{k: v.clone() for k, v in m.named_buffers()} for m in (net, made)]
    plan: Any = pruner.plan
    recover_model(net, made, plan, pruner.analysis.coupling, [case.inputs(8)] * 3, case.inputs(2), progress=False)
    for old, model in zip(before, (net, made), strict=True):
        now = dict(model.named_buffers())
        assert old.keys() == now.keys() and all(torch.equal(old[name], now[name]) for name in old)


# ------------------------------------------------------------------------------------------------ data of every kind


@pytest.mark.parametrize("sizes", [[64], [32, 32], [16, 16, 16, 3], [16] * 9 + [1]])
def test_batches_of_any_number_and_size(sizes: list[int]) -> None:
    net = conv_net()
    batches = [torch.randn(size, 3, 8, 8) for size in sizes]
    plain = prune(net, batches, "none")[1]
    pruner, made = prune(net, batches)
    assert measure(made, net, torch.randn(64, 3, 8, 8)) < measure(plain, net, torch.randn(64, 3, 8, 8))
    assert pruner.recovery.samples == sum(sizes)


def test_labelled_batches_and_double_precision() -> None:
    net = conv_net().double()
    batches = [(each.double(), torch.zeros(32)) for each in images()]
    plain = prune(net, batches, "none", example=batches[0][0])[1]
    made = prune(net, batches, example=batches[0][0])[1]
    test = torch.randn(64, 3, 8, 8).double()
    assert measure(made, net, test) < 0.3 * measure(plain, net, test)
    assert all(value.dtype == torch.float64 for value in made.parameters())


class Tuples(nn.Module):
    """A block called by keyword that returns a tuple, and begins by writing to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.block = TupleBlock()

    def forward(self, x: Tensor) -> Tensor:
        kept = self.stem(x)
        value, extra = self.block(value=kept, factor=0.5)
        return self.head(value) + extra.mean()


class TupleBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act, self.first, self.second = nn.ReLU(inplace=True), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, value: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.first(self.act(value)))
        return value + factor * self.second(hidden), hidden.mean()


def test_tuples_keywords_and_a_block_that_writes_to_its_input() -> None:
    torch.manual_seed(0)
    net = Tuples().eval()
    batches = [torch.randn(64, 6) for _ in range(6)]
    plain = prune(net, batches, "none")[1]
    pruner, made = prune(net, batches)
    test = torch.randn(200, 6)
    assert measure(made, net, test) < 0.5 * measure(plain, net, test)
    assert "block" in {block.path for block in pruner.recovery.blocks} and not pruner.recovery.skipped


# ------------------------------------------------------------------------------------------------- with the pruner


def test_dropped_blocks_are_made_up_for() -> None:
    torch.manual_seed(0)
    net = cifar_resnet(14).eval()
    batches, test = images(6, 16), torch.randn(64, 3, 8, 8)
    options: Any = {"depth_pruning_ratio": 0.4, "ratio": 0.2}
    plain = prune(net, batches, "none", **options)[1]
    pruner, made = prune(net, batches, **options)
    assert pruner.plan.dropped_blocks
    assert measure(made, net, test) < 0.5 * measure(plain, net, test)


@pytest.mark.parametrize("with_callback", [False, True])
def test_steps_with_and_without_training_between_them(with_callback: bool) -> None:
    net = conv_net()
    before = state_of(net)
    batches, test = images(), torch.randn(64, 3, 8, 8)
    seen: list[nn.Module] = []

    def note(step: Any) -> None:
        with torch.no_grad():  # what was learnt since: the repair keeps it
            for parameter in step.model.parameters():
                parameter.mul_(1.01)
        seen.append(copy.deepcopy(step.model))

    plain = prune(net, batches, "none", iterative_steps=2, ratio=0.4)[1]
    callback = note if with_callback else None
    pruner, made = prune(net, batches, iterative_steps=2, ratio=0.4, callback=callback)
    assert pruner.verification.passed and same(before, state_of(net))
    assert {k: v.shape for k, v in state_of(made).items()} == {k: v.shape for k, v in state_of(plain).items()}
    if with_callback:
        assert len(seen) == 2 and measure(made, seen[1], test) == 0.0
    else:
        assert measure(made, net, test) < 0.3 * measure(plain, net, test)


def test_in_place_and_a_failure_in_place() -> None:
    net = conv_net()
    original, batches, test = copy.deepcopy(net), images(), torch.randn(64, 3, 8, 8)
    expected = prune(net, batches)[1]
    pruner, made = prune(net, batches, inplace=True)
    assert made is net and same(state_of(made), state_of(expected))
    assert measure(made, original, test) == measure(expected, original, test)

    net = copy.deepcopy(original)
    pruner = StructuredPruner(net, batches[0], pruning_ratio=0.3, inplace=True, recover="least_squares")
    loader: list[Any] = images()
    pruner.collect_activations(loader, progress=False)
    loader[2] = torch.full((4, 3, 8, 8), float("nan"))
    with pytest.raises(InputError, match="NaN"):
        pruner.prune()
    assert same(state_of(net), state_of(original))


# ------------------------------------------------------------------------------------------------- BatchNorm, biases


def make_repair(net: nn.Module, batches: list[Tensor], ratio: float = 0.3) -> tuple[_Repair, Any]:
    pruner = StructuredPruner(net, batches[0], pruning_ratio=ratio)
    plan = pruner.make_plan()
    made = slice_model(copy.deepcopy(net), plan)
    return _Repair(net, made, plan, pruner.analysis.coupling, batches, None, False), made


def norms_of(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def test_anchored_norms_compute_the_same_and_hold_what_really_comes_in() -> None:
    net = conv_net().double()
    batches = [each.double() for each in images(3)]
    repair, made = make_repair(net, batches)
    before = copy.deepcopy(made)
    repair.anchor_norms()
    assert measure(made, before, torch.randn(32, 3, 8, 8).double()) < 1e-18
    assert not same(state_of(before), state_of(made)) and count_hooks(made) == 0
    seen: dict[Any, Tensor] = {}
    for norm in norms_of(made):
        norm.register_forward_pre_hook(lambda module, args: seen.update({module: args[0].transpose(0, 1).flatten(1)}))
    with torch.no_grad():
        made(torch.cat(batches))
    for norm in norms_of(made):
        assert torch.allclose(norm.running_mean, seen[norm].mean(1), atol=1e-9)
        assert torch.allclose(norm.running_var, seen[norm].var(1, correction=0), atol=1e-9)


def test_batchnorm_gives_the_cumulative_statistics_of_torch() -> None:
    net, batches = conv_net(), images(3)
    made = prune(net, batches, "batchnorm")[1]
    expected = prune(net, batches, "none")[1]
    momenta = [norm.momentum for norm in norms_of(expected)]
    for norm in norms_of(expected):
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for batch in batches:
            expected(batch)
    for norm in norms_of(expected):
        norm.eval()
    assert same(state_of(expected), state_of(made)) and [norm.momentum for norm in norms_of(made)] == momenta


def test_batchnorm_says_where_there_is_none() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    pruner, made = prune(net, [torch.randn(8, 6)], "batchnorm")
    assert "no BatchNorm" in pruner.recovery.skipped[""]
    assert same(state_of(made), state_of(prune(net, [torch.randn(8, 6)], "none")[1]))


def test_a_batch_of_one_is_too_small_for_batchnorm() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).eval()
    with pytest.raises(InputError, match="batch 1"):
        prune(net, [torch.randn(8, 6), torch.randn(1, 6)], "batchnorm")


@pytest.mark.parametrize("name", ["residual", "plain_cnn", "grouped", "dense", "layer_norm", "attention_separate"])
def test_bias_brings_every_mean_back_to_where_it_was(name: str) -> None:
    case = CASES[name]
    net = case.make().double()
    torch.manual_seed(3)
    batches = [case.inputs(16).double() for _ in range(3)]
    pruner, made = prune(net, batches, "bias", example=case.inputs(2).double())
    trace = pruner.analysis.coupling.traces[0].trace
    behind = find_norms(trace, net)  # without a bias of its own, the mean is right behind the norm
    places = {block.path: path_behind(made, block.path, behind) for block in pruner.recovery.blocks}
    means = [mean_outputs(model, list(places.values()), batches) for model in (net, made)]
    assert places
    cut = {c.parameter: list(c.kept) for c in pruner.plan.cuts if c.dim == 0}
    for layer, path in places.items():
        kept = cut.get(f"{layer}.weight", slice(None))
        assert torch.allclose(means[0][path][kept], means[1][path], atol=1e-9), layer


def test_bias_says_which_layers_have_none() -> None:
    pruner, made = prune(CASES["no_bias"].make(), images(2), "bias")
    assert set(pruner.recovery.skipped.values()) == {"it has no bias, and no BatchNorm follows"}
    assert same(state_of(made), state_of(prune(CASES["no_bias"].make(), images(2), "none")[1]))


def path_behind(model: nn.Module, path: str, norms: dict[str, str]) -> str:
    return path if model.get_submodule(path).bias is not None else norms[path]


def mean_outputs(model: nn.Module, paths: list[str], batches: list[Tensor]) -> dict[str, Tensor]:
    sums: dict[str, list[Tensor]] = {}

    def note(path: str) -> Any:
        def hook(_: Any, __: Any, output: Tensor) -> None:
            dim = 1 if output.dim() == 4 else -1
            sums.setdefault(path, []).append(output.detach().movedim(dim, 0).flatten(1))

        return hook

    hooks = [model.get_submodule(path).register_forward_hook(note(path)) for path in paths]
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for hook in hooks:
        hook.remove()
    return {path: torch.cat(parts, 1).mean(1) for path, parts in sums.items()}


# ------------------------------------------------------------------------------------------------------------- stages


def test_stages_are_blocks_in_the_order_of_their_calls() -> None:
    net = cifar_resnet(8)
    pruner = StructuredPruner(net, torch.randn(2, 3, 8, 8))
    trace = pruner.analysis.coupling.traces[0].trace
    found = list_stages(net, trace)
    layers = {path for path, module in net.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    assert all(sum(path == s or path.startswith(f"{s}.") for s in found) == 1 for path in layers)
    calls: list[str] = []
    for path in found:
        net.get_submodule(path).register_forward_pre_hook(lambda *_, path=path: calls.append(path))
    net(torch.randn(2, 3, 8, 8))
    assert calls == found and len(found) < len(layers)
    assert list_stages(nn.Linear(3, 2), trace) == [""]
