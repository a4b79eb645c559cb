"""Recurrent layers and cells in every form: real, equal to the masked original, and to what is sliced by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import nets_layers
import numpy as np
import pytest
import torch
from nets import CASES, randomise
from oracle import assert_equals_masked, assert_removed, assert_runs, flatten, run
from torch import Tensor, nn

from cleanai import ActivationImportance, RandomImportance, StructuredPruner, analyze_model
from cleanai.layers import sizes_of

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

SETTINGS: tuple[dict[str, Any], ...] = (
    {"pruning_ratio": 0.3, "importance": RandomImportance(1)},
    {"pruning_ratio": 0.65, "importance": "magnitude"},
    {"pruning_ratio": 0.5, "global_pruning": True, "importance": RandomImportance(2)},
)
NAMES = sorted(name for name, each in CASES.items() if each.build.__module__ == nets_layers.__name__)


def recurrent_layers(model: nn.Module) -> dict[str, Any]:
    """The recurrent layers and cells of a network, by path."""
    kinds = (nn.RNNBase, nn.RNNCellBase)
    return {path: module for path, module in model.named_modules() if isinstance(module, kinds)}


def build_afresh(layer: Any) -> Any:
    """A new layer made by torch itself from the sizes that a layer says it has."""
    if isinstance(layer, nn.RNNCellBase):
        return type(layer)(layer.input_size, layer.hidden_size, layer.bias)
    options = {name: getattr(layer, name) for name in ("num_layers", "bias", "batch_first", "bidirectional")}
    options.update({"proj_size": layer.proj_size} if layer.proj_size else {})
    options.update({"nonlinearity": layer.nonlinearity} if isinstance(layer, nn.RNN) else {})
    return type(layer)(layer.input_size, layer.hidden_size, **options)


def assert_trains(model: nn.Module, inputs: Any) -> None:
    """A step down the gradient moves every parameter, and the layers compute with what was moved."""
    model.train()
    before = [tensor.detach().clone() for tensor in run(model, inputs)]
    torch.stack([tensor.square().sum() for tensor in run(model, inputs) if tensor.requires_grad]).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= 0.1 * parameter.grad
    assert not torch.equal(run(model.eval(), inputs)[0], before[0])
    for layer in recurrent_layers(model).values():
        assert all(a is getattr(layer, name) for a, name in zip(*_flat(layer), strict=True))


def _flat(layer: Any) -> tuple[list[Any], list[str]]:
    """The list of weights that torch hands to its kernels, with their names."""
    return getattr(layer, "_flat_weights", []), getattr(layer, "_flat_weights_names", [])


def assert_pruned_right(model: nn.Module, make_inputs: Callable[[int], Any], **settings: Any) -> StructuredPruner:
    """Smaller, equal to the masked original by both oracles, whole in every way in which torch uses a layer."""
    inputs = make_inputs(2)
    pruner = StructuredPruner(model, inputs, **settings)
    pruned = pruner.prune()
    assert pruner.plan is not None and pruner.verification is not None and pruner.verification.passed
    assert_equals_masked(model, pruned, pruner.plan, inputs)
    assert_equals_masked(model, pruned, pruner.plan, make_inputs(3))
    assert_removed(model, pruned, pruner.plan)
    originals = recurrent_layers(model)
    for path, layer in recurrent_layers(pruned).items():
        assert layer.hidden_size < originals[path].hidden_size
        fresh = build_afresh(layer)
        fresh.load_state_dict(layer.state_dict())
        assert sizes_of(layer) == {name: getattr(fresh, name) for name in sizes_of(layer)}
        x = torch.randn(3, fresh.input_size)
        assert all(map(torch.equal, flatten(fresh.eval()(x)), flatten(layer(x))))
    assert_runs(pruned, make_inputs(1))
    assert_trains(copy.deepcopy(pruned), inputs)
    return pruner


@pytest.mark.parametrize("settings", SETTINGS, ids=["local 0.3", "local 0.65", "global 0.5"])
@pytest.mark.parametrize("name", NAMES)
def test_networks_with_recurrent_layers(name: str, settings: dict[str, Any]) -> None:
    assert_pruned_right(CASES[name].make(), CASES[name].inputs, **settings)


class Around(nn.Module):
    """A recurrent layer between two others that read and make its sequence."""

    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Linear(6, 8), kind(8, 10, **options)
        width = (options.get("proj_size") or 10) * (1 + options.get("bidirectional", False))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(torch.tanh(self.embed(x)))[0])


FORMS: dict[str, tuple[Any, dict[str, Any]]] = {
    f"{kind.__name__} {' '.join(f'{k}={v}' for k, v in options.items())}": (kind, options)
    for kind in (nn.LSTM, nn.GRU, nn.RNN)
    for options in (
        {},
        {"num_layers": 2, "batch_first": True},
        {"bidirectional": True, "bias": False},
        {"num_layers": 3, "bidirectional": True, "dropout": 0.5},
        {"proj_size": 6},
        {"proj_size": 5, "num_layers": 2, "bidirectional": True, "batch_first": True},
        {"nonlinearity": "relu", "num_layers": 2},
    )
    if ("proj_size" not in options or kind is nn.LSTM) and ("nonlinearity" not in options or kind is nn.RNN)
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_recurrent_layer(form: str) -> None:
    kind, options = FORMS[form]
    model = randomise(Around(kind, **options)).eval()
    pruner = assert_pruned_right(
        model, lambda batch: torch.randn(batch, 5, 6), pruning_ratio=0.5, importance=RandomImportance(3)
    )
    layer: Any = pruner.pruned.rnn if pruner.pruned is not None else None
    assert (layer.input_size, layer.hidden_size) == (4, 5)
    assert layer.proj_size == {0: 0, 5: 3, 6: 3}[model.rnn.proj_size] or layer.proj_size == 2


# ----------------------------------------------------------------------------------------------------- by hand

GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}


def slice_by_hand(layer: Any, columns: list[int], units: list[int], projected: list[int]) -> Any:
    """A layer of torch's own with these inputs, hidden units and projected numbers of another, gate by gate."""
    options = {"proj_size": len(projected)} if projected else {}
    small = type(layer)(len(columns), len(units), **options)
    rows = [gate * layer.hidden_size + unit for gate in range(GATES[type(layer)]) for unit in units]
    back = projected or units
    with torch.no_grad():
        small.weight_ih_l0.copy_(layer.weight_ih_l0[rows][:, columns])
        small.weight_hh_l0.copy_(layer.weight_hh_l0[rows][:, back])
        small.bias_ih_l0.copy_(layer.bias_ih_l0[rows])
        small.bias_hh_l0.copy_(layer.bias_hh_l0[rows])
        if projected:
            small.weight_hr_l0.copy_(layer.weight_hr_l0[projected][:, units])
    return small


@pytest.mark.parametrize(("kind", "proj_size"), [(nn.LSTM, 0), (nn.LSTM, 6), (nn.GRU, 0), (nn.RNN, 0)])
def test_one_layer_is_what_slicing_every_gate_by_hand_makes(kind: Any, proj_size: int) -> None:
    model: Any = randomise(Around(kind, **({"proj_size": proj_size} if proj_size else {}))).eval()
    inputs = torch.randn(5, 2, 6)
    pruner = StructuredPruner(model, inputs, RandomImportance(5), 0.4)
    pruned: Any = pruner.prune()
    assert pruner.plan is not None
    columns = list(pruner.plan.kept("embed.weight", 0))
    units = [row for row in pruner.plan.kept("rnn.weight_ih_l0", 0) if row < 10]
    projected = list(pruner.plan.kept("rnn.weight_hr_l0", 0)) if proj_size else []
    assert len(columns) == 5 and len(units) == 6
    by_hand = slice_by_hand(model.rnn, columns, units, projected)
    x = torch.tanh(model.embed(inputs))[..., columns]
    expected, state = by_hand(x)
    ours, our_state = pruned.rnn(x)
    assert torch.equal(ours, expected) and all(map(torch.equal, flatten(our_state), flatten(state)))
    head = nn.functional.linear(expected, model.head.weight[:, projected or units], model.head.bias)
    torch.testing.assert_close(pruned(inputs), head)


def test_layers_and_directions_lose_equally_many_units_but_not_the_same_ones() -> None:
    model = randomise(Around(nn.LSTM, num_layers=2, bidirectional=True)).eval()
    pruner = assert_pruned_right(
        model, lambda batch: torch.randn(batch, 5, 6), pruning_ratio=0.4, importance=RandomImportance(0)
    )
    assert pruner.plan is not None
    suffixes = ("l0", "l0_reverse", "l1", "l1_reverse")
    kept = [pruner.plan.kept(f"rnn.weight_hh_{suffix}", 1) for suffix in suffixes]
    assert {len(units) for units in kept} == {6} and len(set(kept)) > 1
    # The second layer reads the first one's directions side by side, the head those of the second.
    for reader, first in (("rnn.weight_ih_l1", 0), ("rnn.weight_ih_l1_reverse", 0), ("head.weight", 2)):
        assert pruner.plan.kept(reader, 1) == (*kept[first], *(10 + unit for unit in kept[first + 1]))


def test_the_units_of_a_layer_of_one_kind_go_with_their_row_in_each_gate() -> None:
    group = next(g for g in analyze_model(Around(nn.GRU), torch.randn(5, 2, 6)).groups if g.name.startswith("rnn"))
    rows = {m.parameter: m for m in group.members if m.dim == 0}
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        assert np.array_equal(rows[f"rnn.{name}"].units, np.tile(np.arange(10), 3))


# ------------------------------------------------------------------------------------------------- how they are used


def test_the_states_of_a_pruned_language_model_go_on_from_call_to_call() -> None:
    model = CASES["language_model"].make()
    words = CASES["language_model"].inputs(2)
    pruned: Any = StructuredPruner(model, words, RandomImportance(1), 0.5).prune()
    first, states = pruned.step(words[:, :2])
    rest, _ = pruned.step(words[:, 2:], states)
    torch.testing.assert_close(torch.cat([first, rest], 1), pruned(words))
    assert states[0].shape == (2, 2, 4) and pruned.head.weight is pruned.embed.weight


@pytest.mark.parametrize("detached", [False, True])
def test_states_that_are_returned_stay_unless_an_output_transform_leaves_them_out(detached: bool) -> None:
    class Speaks(nets_layers.LanguageModel):
        def forward(self, x: Tensor) -> Any:
            scores, states = self.step(x)
            return scores, {"states": [state.detach() if detached else state for state in states]}

    model, words = randomise(Speaks()).eval(), CASES["language_model"].inputs(2)
    whole = StructuredPruner(model, words, RandomImportance(1), 0.5)
    assert not whole.groups
    assert any("output" in frozen.reason for frozen in whole.frozen if "lstm" in frozen.layers)
    other = StructuredPruner(model, words, RandomImportance(1), 0.5, output_transform=lambda output: output[0])
    pruned: Any = other.prune()
    assert pruned.lstm.hidden_size == 4


def test_activations_of_recurrent_layers_are_scored_or_named() -> None:
    model = CASES["lstm_deep"].make()
    inputs = CASES["lstm_deep"].inputs(4)
    pruner = StructuredPruner(model, inputs, ActivationImportance(), 0.5)
    pruner.collect_activations([inputs], progress=False)
    assert_equals_masked(model, pruner.prune(), pruner.plan, inputs)  # ty: ignore[invalid-argument-type]
    assert pruner.plan is not None
    for group in pruner.plan.groups:
        assert group.dropped or group.note or any(group.name in warning for warning in pruner.warnings)


def test_reasons_name_the_layer() -> None:
    frozen = analyze_model(CASES["gru_states"].make(), CASES["gru_states"].inputs(2)).frozen
    assert any(each.reason.startswith("GRU in gru combines it with the input") for each in frozen)


def test_a_layer_that_is_ignored_keeps_its_sizes_and_those_around_it() -> None:
    model = CASES["translator"].make()
    pruner = StructuredPruner(model, CASES["translator"].inputs(2), RandomImportance(), 0.5, ignored_layers=["decoder"])
    pruned: Any = pruner.prune()
    assert (pruned.encoder.hidden_size, pruned.decoder.input_size, pruned.mix.out_features) == (8, 7, 5)


def test_a_subclass_with_a_forward_of_its_own_is_looked_into() -> None:
    class Residual(nn.GRUCell):
        def forward(self, input: Tensor, hx: Any = None) -> Tensor:
            return super().forward(input, hx) + input

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.cell, self.head = nn.Linear(6, 8), Residual(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cell(torch.tanh(self.embed(x))))

    model, inputs = randomise(Net()).eval(), torch.randn(2, 6)
    pruner = StructuredPruner(model, inputs, RandomImportance(1), 0.5)
    pruned = pruner.prune()
    assert pruner.plan is not None
    assert_equals_masked(model, pruned, pruner.plan, inputs)
    assert not any(op.kind == "WholeLayer" for t in pruner.analysis.coupling.traces for op in t.trace.operations)
