"""One test for each line of "What the field gets wrong" in the design that the operations so far cover.

Each test quotes its line. Where an operation is not supported, it must be frozen by name and the rest pruned right.
"""

from __future__ import annotations

import copy
import itertools
import time
from typing import Any

import pytest
import torch
from nets import CASES, PlainCnn, conv, randomise
from oracle import assert_equals_masked, assert_removed, assert_runs
from torch import Tensor, nn
from torch.nn import functional as F

from cleanai import (
    ActivationImportance,
    MagnitudeImportance,
    Plan,
    RandomImportance,
    ScoredGroup,
    StructuredPruner,
    count_macs,
    slice_model,
)
from cleanai.analysis import analyze_model


def prune(name: str, ratio: float = 0.5, **options: Any) -> tuple[Any, Any, StructuredPruner]:
    """A network of `nets.py`, pruned and proven by both oracles."""
    case = CASES[name]
    model = case.make()
    pruner = StructuredPruner(model, case.inputs(2), RandomImportance(4), ratio, **options)
    pruned: Any = pruner.prune()
    assert pruner.plan is not None
    assert_equals_masked(model, pruned, pruner.plan, case.inputs(2), case.kept_like)
    assert_removed(model, pruned, pruner.plan)
    assert_runs(pruned, case.inputs(1))
    return model, pruned, pruner


def dropped(pruner: StructuredPruner) -> dict[str, int]:
    """{group: units that went}, groups that lost none left out."""
    assert pruner.plan is not None
    return {group.name: len(group.dropped) for group in pruner.plan.groups if group.dropped}


def assert_frozen(pruner: StructuredPruner, parameter: str, reason: str) -> None:
    """A parameter is listed as frozen, with this in its reason."""
    reasons = [f.reason for f in pruner.frozen if parameter in {name for name, _ in f.parameters}]
    assert any(reason in text for text in reasons), reasons


def sequential(*layers: nn.Module) -> Any:
    """A network with random parameters and statistics in evaluation mode."""
    return randomise(nn.Sequential(*layers)).eval()


# --------------------------------------------------------------------------------------- wrong without an error


@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.9])
def test_layernorm_keeps_its_order_when_few_channels_are_kept(ratio: float) -> None:
    """ "LayerNorm weights come out permuted when few channels are kept" """

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(6, 96), nn.LayerNorm(96), nn.Linear(96, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.norm(self.a(x)))

    model = randomise(Wide())
    pruner = StructuredPruner(model, torch.randn(2, 6), RandomImportance(), ratio)
    pruned: Any = pruner.prune()
    assert pruner.plan is not None
    assert torch.equal(pruned.norm.weight, model.norm.weight[list(pruner.plan.kept("a.weight", 0))])
    assert_equals_masked(model, pruned, pruner.plan, torch.randn(2, 6))


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("flatten_nhwc", {"conv": 3}),
        ("shuffle", {"conv1": 2}),
        ("flip", {"conv1": 6}),
        ("roll", {"conv1": 4}),
        ("strided_stack", {"entry": 4, "stem": 3}),
    ],
)
def test_moved_channels_are_followed(name: str, groups: dict[str, int]) -> None:
    """ "silently wrong for permute+flatten (NHWC), channel shuffle, flip, roll, strided stack" """
    _, _, pruner = prune(name)
    found = dropped(pruner)
    assert set(found) == set(groups)
    assert all(abs(found[group] - count) <= 1 for group, count in groups.items())


@pytest.mark.parametrize("transposed", [False, True])
def test_grouped_convolutions_take_whole_groups_or_the_same_share_of_each(transposed: bool) -> None:
    """ "grouped conv with uneven indices", "crashes on … grouped ConvTranspose" """
    _, pruned, pruner = prune("grouped_transposed" if transposed else "grouped", 0.4)
    layer = pruned.up if transposed else pruned.conv2
    assert dropped(pruner) and layer.weight.shape[0] % layer.groups == 0
    assert (layer.in_channels, layer.groups) == ((6, 2) if transposed else (8, 2))


def test_grouped_convolutions_of_two_groups_shrink_inside_each_group() -> None:
    """ "grouped conv with uneven indices": the same number from each group, in whichever places"""
    model = sequential(conv(3, 8, 1), nn.ReLU(), conv(8, 12, groups=2), nn.ReLU(), conv(12, 5, 1))
    inputs = torch.randn(2, 3, 6, 6)
    for ratio in (0.34, 0.5, 0.7):
        pruner = StructuredPruner(model, inputs, RandomImportance(1), ratio)
        pruned: Any = pruner.prune()
        assert pruner.plan is not None and not pruner.plan.is_empty
        assert_equals_masked(model, pruned, pruner.plan, inputs)


# --------------------------------------------------------------------------------------------------------- crashes


@pytest.mark.parametrize(("name", "groups"), [("lstm", {"embed": 4}), ("gru", {})])
def test_recurrent_layers_lose_hidden_units(name: str, groups: dict[str, int]) -> None:
    """ "crashes on LSTM/GRU" """
    _, pruned, pruner = prune(name)
    found = dropped(pruner)
    assert found.pop("fc1") in (3, 4) and found == {f"{name}.weight_ih_l0": 5, **groups}
    layer = pruned.get_submodule(name)
    assert (layer.input_size, layer.hidden_size) == ({"lstm": 4, "gru": 6}[name], 5)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # torch's own, on the CPU
@pytest.mark.parametrize("options", [{"num_layers": 2}, {"bidirectional": True}, {"proj_size": 5}, {"dropout": 0.5}])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_of_every_form_lose_hidden_units(kind: type[nn.Module], options: dict[str, Any]) -> None:
    """ "crashes on LSTM/GRU" (more forms: test_layers_whole.py)"""
    if "proj_size" in options and kind is not nn.LSTM:
        options = {}
    if "dropout" in options:
        options = {**options, "num_layers": 2}

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.rnn = nn.Linear(6, 8), kind(8, 10, batch_first=True, **options)
            width = (options.get("proj_size") or 10) * (2 if options.get("bidirectional") else 1)
            self.fc1, self.fc2 = nn.Linear(width, 7), nn.Linear(7, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(torch.tanh(self.fc1(self.rnn(self.embed(x))[0][:, -1])))

    model, inputs = randomise(Recurrent()).eval(), torch.randn(2, 5, 6)
    pruner = StructuredPruner(model, inputs, RandomImportance(), 0.5)
    pruned: Any = pruner.prune()
    assert pruner.plan is not None and "fc1" in dropped(pruner)
    assert (pruned.rnn.input_size, pruned.rnn.hidden_size) == (4, 5)
    assert_equals_masked(model, pruned, pruner.plan, inputs)
    assert_runs(pruned.train(), torch.randn(3, 5, 6))


@pytest.mark.parametrize("name", ["instance_norm", "instance_norm_statistics"])
def test_instance_norm_with_and_without_running_statistics(name: str) -> None:
    """ "crashes on … InstanceNorm with running stats" """
    _, pruned, pruner = prune(name)
    assert dropped(pruner) == {"conv0": 3, "conv1": 4} and pruned.norm.num_features == 4


@pytest.mark.parametrize(("name", "layer", "shape"), [("weight_norm", "4", (4, 5)), ("spectral_norm", "2", (4, 5))])
def test_parametrised_weights_are_pruned(name: str, layer: str, shape: tuple[int, int]) -> None:
    """ "crashes on … weight_norm" """
    _, pruned, pruner = prune(name)
    assert len(dropped(pruner)) == {"weight_norm": 4, "spectral_norm": 3}[name]
    assert pruned.get_submodule(layer).weight.shape == shape


def test_old_style_weight_norm_is_pruned_right_or_frozen() -> None:
    """ "crashes on … weight_norm" (torch.nn.utils.weight_norm: a hook that writes the weight before each forward)"""
    with pytest.warns(FutureWarning, match="weight_norm"):
        normed = nn.utils.weight_norm(nn.Linear(10, 8))
    model = sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 10), nn.Tanh(), normed, nn.Tanh(), nn.Linear(8, 4))
    with torch.no_grad():
        model(torch.randn(1, 6))  # leaves a weight without a graph, which can be copied
    pruner = StructuredPruner(model, torch.randn(2, 6), RandomImportance(), 0.5, inplace=True)
    original = copy.deepcopy(model)
    pruned: Any = pruner.prune()
    assert pruner.plan is not None and dropped(pruner)["0"] in (4, 5)
    assert_equals_masked(original, pruned, pruner.plan, torch.randn(2, 6))


@pytest.mark.parametrize("name", ["checkpointed", "checkpointed_reentrant"])
def test_checkpointing_is_looked_through(name: str) -> None:
    """ "crashes on … checkpointing" """
    _, _, pruner = prune(name)
    assert dropped(pruner) == {"conv1": 4, "conv2": 3}


def test_a_pixel_shuffle_loses_whole_blocks_of_channels() -> None:
    """ "crashes on … PixelShuffle" """
    _, pruned, pruner = prune("pixel_shuffle")
    assert dropped(pruner) == {"conv0": 3, "conv1": 2}
    assert (pruned.conv1.out_channels, pruned.conv2.in_channels) == (8, 2)


def test_a_gather_by_index_tensor_keeps_what_it_points_to() -> None:
    """ "crashes on … gather by index tensor" """
    _, _, pruner = prune("index_tensor")
    assert set(dropped(pruner)) == {"entry"}
    assert_frozen(pruner, "stem.weight", "picks from it by position")


@pytest.mark.parametrize("how", ["gather", "take_along_dim", "index_select"])
def test_other_ways_to_gather_keep_what_they_point_to(how: str) -> None:
    """ "crashes on … gather by index tensor" """

    class Gathers(nn.Module):
        picks: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.fc0, self.fc1, self.fc2 = nn.Linear(6, 7), nn.Linear(7, 8), nn.Linear(3, 4)
            self.register_buffer("picks", torch.tensor([1, 4, 7]))

        def forward(self, x: Tensor) -> Tensor:
            x = self.fc1(torch.tanh(self.fc0(x)))
            if how == "gather":
                return self.fc2(x.gather(1, self.picks.expand(x.shape[0], -1)))
            if how == "take_along_dim":
                return self.fc2(torch.take_along_dim(x, self.picks[None], 1))
            return self.fc2(x.index_select(1, self.picks))

    model, inputs = randomise(Gathers()), torch.randn(2, 6)
    pruner = StructuredPruner(model, inputs, RandomImportance(), 0.5)
    pruned: Any = pruner.prune()
    assert pruner.plan is not None and set(dropped(pruner)) == {"fc0"}
    assert_equals_masked(model, pruned, pruner.plan, inputs)


@pytest.mark.parametrize("equation", ["bi,io->bo", "bi,oi->bo", "bi,io,o->bo", "bi,hio->bho"])
def test_einsum_weights(equation: str) -> None:
    """ "crashes on … einsum weights" """
    shapes = {"io": (8, 10), "oi": (10, 8), "o": (10,), "hio": (2, 8, 5)}

    class Einsum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(10, 4)
            names = equation.split("->")[0].split(",")[1:]
            self.weights = nn.ParameterList([nn.Parameter(torch.empty(shapes[name])) for name in names])

        def forward(self, x: Tensor) -> Tensor:
            x = torch.einsum(equation, torch.tanh(self.fc1(x)), *self.weights)
            return self.fc2(torch.tanh(x).flatten(1))

    model, inputs = randomise(Einsum()), torch.randn(3, 6)
    pruner = StructuredPruner(model, inputs, RandomImportance(), 0.5)
    pruned: Any = pruner.prune()
    assert pruner.plan is not None and dropped(pruner)["fc1"] == 4
    assert pruned.fc2.in_features == 5 or equation == "bi,hio->bho"
    assert_equals_masked(model, pruned, pruner.plan, inputs)


def test_queries_picked_by_an_index() -> None:
    """ "crashes on … `qkv[0]`" """
    _, pruned, pruner = prune("attention_index")
    assert dropped(pruner) == {"embed": 4, "qkv": 2} and pruned.num_heads == 2


def test_a_fully_frozen_model_is_pruned_and_stays_frozen() -> None:
    """ "crashes on … fully frozen models" """
    _, pruned, pruner = prune("frozen_parameters")
    assert dropped(pruner) == {"conv1": 4, "conv2": 6}
    assert not any(parameter.requires_grad for parameter in pruned.parameters())


@pytest.mark.parametrize("name", ["none_outputs", "dict_inputs", "named_outputs"])
def test_outputs_that_contain_none(name: str) -> None:
    """ "crashes on … outputs containing None" """
    assert dropped(prune(name)[2])


def test_layers_given_as_instances() -> None:
    """ "crashes on … instance-keyed custom pruners" """
    model = CASES["plain_cnn"].make()
    inputs, ratios = CASES["plain_cnn"].inputs(2), {model.conv2: 0.25}
    pruner = StructuredPruner(model, inputs, "magnitude", 0.5, layer_pruning_ratios=ratios)
    pruned: Any = pruner.prune()
    assert (pruned.conv1.out_channels, pruned.conv2.out_channels) == (4, 9)


# ----------------------------------------------------------------------------------------------------------- budgets


class _Ties:
    """A scorer that gives every unit of every group the same score."""

    def __call__(self, group: ScoredGroup) -> Tensor:
        return torch.ones(group.size)


@pytest.mark.parametrize("over_all", [False, True])
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.9])
def test_ties_remove_what_was_asked(ratio: float, over_all: bool) -> None:
    """ "ties in scores at the global threshold removed 50 % where 10 % was asked" """
    model = sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 3))
    pruner = StructuredPruner(model, torch.randn(2, 4), _Ties(), ratio, global_pruning=over_all)
    plan = pruner.make_plan()
    assert plan.dropped_units == round(ratio * 100)
    assert pruner.make_plan() == plan


@pytest.mark.parametrize("over_all", [False, True])
@pytest.mark.parametrize("target", ["channels", "params", "macs"])
def test_a_larger_ratio_never_removes_less(target: str, over_all: bool) -> None:
    """ "ratio 0.95 removed *less* than 0.9" """
    model, inputs = CASES["residual"].make(), CASES["residual"].inputs(1)
    counts = []
    for ratio in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99):
        pruner = StructuredPruner(model, inputs, RandomImportance(), ratio, target=target, global_pruning=over_all)
        plan = pruner.make_plan()
        counts.append({group.name: len(group.dropped) for group in plan.groups})
    for less, more in itertools.pairwise(counts):
        assert sum(less.values()) <= sum(more.values())


@pytest.mark.parametrize("over_all", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_largest_ratio_of_a_layer_is_kept(over_all: bool, steps: int) -> None:
    """ "`max_pruning_ratio` exceeded" """
    options = {"max_pruning_ratio": 0.4, "global_pruning": over_all, "iterative_steps": steps}
    for name in ("residual", "concat_group_norm", "split_attribute"):
        plan = prune(name, 0.9, **options)[2].plan
        assert plan is not None
        assert all(len(group.dropped) <= 0.4 * group.size for group in plan.groups)


def test_the_report_shows_parameters_beside_channels() -> None:
    """ "a channel ratio of 0.3 reported as if it were 30 % of the parameters (it is about 50 %)" """
    model = sequential(nn.Linear(20, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 5))
    pruner = StructuredPruner(model, torch.randn(1, 20), "magnitude", 0.3)
    pruned: Any = pruner.prune()
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, pruned))
    budget = pruner.report().budget
    assert budget.channels == pytest.approx(0.3)
    assert budget.params == pytest.approx(1 - after / before) and budget.params > 0.45


# --------------------------------------------------------------------------------------------- parameters and sharing


@pytest.mark.parametrize("name", ["tied_linears", "tied_embedding", "called_twice"])
def test_tied_weights_stay_tied(name: str) -> None:
    """ "tied weights silently untied" """
    model, pruned, pruner = prune(name)
    assert dropped(pruner)
    assert len(list(pruned.parameters())) == len(list(model.parameters()))
    assert [n for n, _ in pruned.named_parameters()] == [n for n, _ in model.named_parameters()]


def test_concatenations_cost_no_more_than_their_depth() -> None:
    """ "cost growing as the cube of the depth in nets of concatenations" """

    class Block(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(4 + 4 * i, 4, 1) for i in range(depth))
            self.head = nn.Conv2d(4 + 4 * depth, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.convs:
                x = torch.cat([x, F.relu(layer(x))], 1)
            return self.head(x)

    def seconds(depth: int) -> float:
        model, best = Block(depth), float("inf")
        for _ in range(3):
            start = time.perf_counter()
            analysis = analyze_model(model, torch.randn(1, 4, 2, 2))
            best = min(best, time.perf_counter() - start)
        assert sum(group.size for group in analysis.groups) == 4 * depth
        return best

    assert seconds(80) / seconds(20) < 4**2 * 1.5  # a cube would be 64


def test_windows_and_repeated_heads_with_rotary_embeddings_end() -> None:
    """ "hangs on every Swin and on grouped-query attention with rotary embeddings" """

    class Window(nn.Module):
        """Swin: windows cut out of a shifted image, a bias looked up for each pair of positions."""

        places: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm, self.qkv, self.proj = (
                nn.Conv2d(3, 12, 1), nn.LayerNorm(12), nn.Linear(12, 36), nn.Linear(12, 12),
            )  # fmt: skip
            self.num_heads, self.window = 3, 2
            self.table = nn.Parameter(torch.empty(9, 3))
            self.register_buffer("places", torch.arange(16) % 9)
            self.head = nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x).permute(0, 2, 3, 1)
            n, h, w, c = x.shape
            k = self.window
            y = torch.roll(self.norm(x), (-1, -1), (1, 2))
            y = y.view(n, h // k, k, w // k, k, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, k * k, c)
            qkv = self.qkv(y).reshape(y.shape[0], k * k, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
            q, key, v = qkv[0] * 0.5, qkv[1], qkv[2]
            bias = self.table[self.places].view(k * k, k * k, -1).permute(2, 0, 1)
            y = ((q @ key.transpose(-2, -1)) + bias).softmax(-1) @ v
            y = self.proj(y.transpose(1, 2).reshape(y.shape[0], k * k, -1))
            y = y.view(n, h // k, w // k, k, k, -1).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, -1)
            return self.head((x + torch.roll(y, (1, 1), (1, 2))).mean((1, 2)))

    model, inputs = randomise(Window()), torch.randn(2, 3, 4, 4)
    pruner = StructuredPruner(model, inputs, RandomImportance(), 0.34)
    pruned: Any = pruner.prune()
    assert pruner.plan is not None and dropped(pruner)
    assert_equals_masked(model, pruned, pruner.plan, inputs)
    assert dropped(prune("gqa_rotary")[2]) == {"q": 1}


# ----------------------------------------------------------------------------------------------- couplings missed


def test_zero_padded_shortcuts() -> None:
    """ "option-A shortcuts (`F.pad` on channels) … wrong" """
    model, pruned, pruner = prune("option_a")
    assert dropped(pruner) == {"stem": 4}
    assert pruned.conv.out_channels == 12 and model.conv.out_channels == 16


def test_group_norm_over_a_concatenation() -> None:
    """ "GroupNorm over a concat … wrong" """
    _, pruned, pruner = prune("concat_group_norm")
    assert dropped(pruner) == {"conv1": 8}
    assert pruned.norm.num_channels == 8 and pruned.norm.num_groups == 4


def test_unflatten_and_unbind() -> None:
    """ "`unflatten`+`unbind` wrong" """
    _, pruned, pruner = prune("unflatten_unbind")
    assert dropped(pruner)["stem"] == 6
    assert pruned.left.in_channels == pruned.right.in_channels == 3


def test_a_head_that_only_trains_follows() -> None:
    """ "train-mode forward of auxiliary heads broken though eval is right" """
    model, pruned, pruner = prune("auxiliary")
    assert pruned.aux_conv.in_channels == 4 and pruner.plan is not None
    assert pruner.plan.kept("aux_conv.weight", 1) == pruner.plan.kept("conv2.weight", 1)
    inputs = CASES["auxiliary"].inputs(2)
    main, aux = pruned.train()(inputs)
    assert main.shape == aux.shape == (2, 5)
    masked = copy.deepcopy(model).train()
    with torch.no_grad():
        for cut in pruner.plan.cuts:
            masked.get_parameter(cut.parameter).index_fill_(cut.dim, torch.tensor(cut.dropped), 0.0)
    assert torch.allclose(aux, masked(inputs)[1], atol=1e-5) and torch.allclose(main, masked(inputs)[0], atol=1e-5)


def test_a_branch_that_the_example_does_not_take_is_left_alone() -> None:
    """ "data-dependent traces (detection without detections) missing couplings" """

    class Sometimes(nn.Module):
        """The extra layer runs for large inputs only: what it reads must stay, since the example cannot show it."""

        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.extra, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.fc1(x))
            if bool((x.abs() > 50).any()):
                y = y + self.extra(y)
            return self.fc2(y)

    model = randomise(Sometimes())
    large = 100 * torch.randn(2, 6)
    shown = StructuredPruner(model, large, RandomImportance(), 0.5, verify=False)
    assert_runs(shown.prune(), large)
    hidden = StructuredPruner(model, torch.zeros(2, 6), RandomImportance(), 0.5)
    pruned: Any = hidden.prune()
    unused = any("extra" in layer for frozen in hidden.frozen for layer in frozen.layers)
    warned = any("extra" in warning for warning in hidden.warnings)
    assert pruned.fc1.out_features == 8 or unused or warned, "the layer that did not run is not mentioned anywhere"


@pytest.mark.parametrize("name", ["squeeze_excite", "spatial_attention", "size_one", "expand"])
def test_channels_of_size_one_are_part_of_it(name: str) -> None:
    """ "channels of size 1 (broadcast C vs 1) left out" """
    assert dropped(prune(name)[2])["conv1"] == 4


def test_a_convolution_on_one_channel_is_no_depthwise_one() -> None:
    """ "1-channel conv mistaken for depthwise" """
    _, pruned, pruner = prune("one_channel")
    assert dropped(pruner) == {"conv1": 4}
    assert (pruned.conv1.in_channels, pruned.conv1.out_channels, pruned.conv1.groups) == (1, 4, 1)


@pytest.mark.parametrize("ignored", ["conv2", nn.Linear, [nn.BatchNorm2d, "fc"]])
def test_ignored_layers_lose_nothing(ignored: Any) -> None:
    """ "ignored layers still losing inputs" """
    model = CASES["plain_cnn"].make()
    specs = ignored if isinstance(ignored, list) else [ignored]
    pruner = StructuredPruner(model, CASES["plain_cnn"].inputs(2), "magnitude", 0.5, ignored_layers=specs)
    pruned: Any = pruner.prune()
    for name, layer in model.named_modules():
        if any(name == spec if isinstance(spec, str) else isinstance(layer, spec) for spec in specs):
            kept = pruned.get_submodule(name).state_dict()
            assert all(torch.equal(kept[key], value) for key, value in layer.state_dict().items())


# ------------------------------------------------------------------------------------------------ numbers and states


@pytest.mark.parametrize(
    ("model", "inputs", "macs"),
    [
        (nn.ConvTranspose2d(3, 5, 3, stride=2), torch.randn(1, 3, 4, 4), 4 * 4 * 3 * 5 * 9),
        (CASES["bare_parameters"].build(), torch.randn(1, 3, 8, 8), 64 * 27 * 8 + 8 * 6 + 6 * 5),
        (
            CASES["attention_sdpa"].build(),
            torch.randn(1, 5, 12),
            5 * 12 * 36 + 2 * 3 * 5 * 5 * 4 + 5 * 12 * 12,
        ),
    ],
)
def test_macs_of_strided_transposed_convolution_functional_linear_and_attention(
    model: nn.Module, inputs: Tensor, macs: int
) -> None:
    """ "MACs wrong for SDPA, F.linear and strided ConvTranspose" """
    counted = count_macs(randomise(model).eval(), inputs)
    assert counted == macs


def test_modes_flags_and_hooks_are_left_alone() -> None:
    """ "eval() mode, requires_grad and hooks left changed" (every network: test_trace.py)"""
    model = CASES["plain_cnn"].make().train()
    model.bn1.eval()
    model.conv1.weight.requires_grad_(False)
    StructuredPruner(model, CASES["plain_cnn"].inputs(2)).prune()
    assert model.training and not model.bn1.training and not model.conv1.weight.requires_grad
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_optimizer_of_the_original_holds_living_parameters() -> None:
    """ "an optimizer left holding dead parameters": without inplace the original keeps its parameters"""
    model = CASES["plain_cnn"].make()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruned = StructuredPruner(model, CASES["plain_cnn"].inputs(2)).prune()
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters()}
    assert held.isdisjoint({id(parameter) for parameter in pruned.parameters()})


def test_the_pruned_model_loads_without_executing_code(tmp_path: Any) -> None:
    """ "the pruned model not loadable with `weights_only=True`" """
    _, pruned, pruner = prune("multihead_attention")
    assert pruner.plan is not None
    torch.save(pruned.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "plan.json").write_text(pruner.plan.to_json())
    fresh = CASES["multihead_attention"].make(seed=9)
    slice_model(fresh, Plan.from_json((tmp_path / "plan.json").read_text()))
    fresh.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    inputs = CASES["multihead_attention"].inputs(2)
    assert torch.equal(fresh(inputs), pruned(inputs))


@pytest.mark.parametrize("importance", [MagnitudeImportance(1), MagnitudeImportance(2), ActivationImportance()])
def test_dead_channels_go_first(importance: Any) -> None:
    """ "an importance sign inverted so that the most active neurons were pruned" """
    model = randomise(PlainCnn()).eval()
    dead = [0, 3, 6]
    with torch.no_grad():
        model.conv1.weight[dead] = 0
        model.conv1.bias[dead] = 0
        model.bn1.weight[dead] = 0
        model.bn1.bias[dead] = 0
        model.conv2.weight[:, dead] = 0
    pruner = StructuredPruner(model, torch.randn(2, 3, 8, 8), importance, 0.375)
    pruner.collect_activations([torch.randn(4, 3, 8, 8)], progress=False)
    plan = pruner.make_plan()
    assert plan.groups[0].dropped == tuple(dead)
