"""Rules of the user's own: what they free, what they leave, how they fail, and that they can be taken back."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from nets import randomise
from oracle import assert_equals_masked, assert_runs
from torch import Tensor, nn

from cleanai import InputError, RandomImportance, StructuredPruner, TraceError, VerificationError, analyze_model
from cleanai.registry import find_layer_rule
from cleanai.rules import RULES, Links, register_rule, unregister_rule
from cleanai.trace import trace_model

Connect = Callable[[Links], object]


@contextmanager
def ruled(target: Any, connect: Connect, shrink: Any = None) -> Generator[None]:
    """A rule for as long as the context lasts."""
    register_rule(target, connect, shrink)
    try:
        yield
    finally:
        unregister_rule(target)


class Bend(nn.Module):
    """Each channel's negative part has a slope: ``where`` on a condition, which autograd does not show."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.slope = width, nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, self.width)
        return torch.where(x > 0, x, x * self.slope)


def tie_channels(links: Links) -> None:
    """Channel i of the input, of the slopes and of the output."""
    links.tie(links.input().dim(1), links.tensor("slope").dim(0), links.output().dim(-1))


def update_width(module: Any) -> None:
    """As many as there are slopes."""
    module.width = module.slope.shape[0]


class Net(nn.Module):
    """Three layers with something after the first and the second."""

    def __init__(self, first: nn.Module, second: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.first, self.b, self.c = nn.Linear(6, 8), first, nn.Linear(8, 8), nn.Linear(8, 3)
        self.second = second if second is not None else nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.second(self.b(self.first(self.a(x)))))


def build(*layers: nn.Module) -> Any:
    """The network with random parameters."""
    return randomise(Net(*layers)).eval()


def sizes(model: nn.Module, inputs: Any = None) -> dict[str, int]:
    """{group: units} of the groups that can be pruned."""
    return {g.name: g.size for g in analyze_model(model, torch.randn(2, 6) if inputs is None else inputs).groups}


def reasons(model: nn.Module, parameter: str, inputs: Any = None) -> str:
    """Why a parameter's channels stay."""
    frozen = analyze_model(model, torch.randn(2, 6) if inputs is None else inputs).frozen
    return "; ".join(f.reason for f in frozen if parameter in {name for name, _ in f.parameters})


def assert_pruned_right(model: nn.Module, inputs: Any = None, ratio: float = 0.5) -> Any:
    """The pruned model, equal to the masked original."""
    inputs = torch.randn(2, 6) if inputs is None else inputs
    pruner = StructuredPruner(model, inputs, RandomImportance(3), ratio)
    pruned = pruner.prune()
    assert pruner.plan is not None
    assert_equals_masked(model, pruned, pruner.plan, inputs)
    assert_runs(pruned, inputs)
    return pruned


def state_of(model: nn.Module) -> list[Any]:
    """Tensors as objects with their values, and every module's attributes and hooks."""
    parts = [(path, list(vars(m).items()), list(m._forward_hooks.items())) for path, m in model.named_modules()]
    return [
        parts,
        [(name, id(tensor), tensor.detach().clone()) for name, tensor in model.state_dict(keep_vars=True).items()],
    ]


def assert_same_state(model: nn.Module, before: list[Any]) -> None:
    """As it was."""
    parts, tensors = state_of(model)
    assert str(parts) == str(before[0])
    for (name, identity, values), (was, same, old) in zip(tensors, before[1], strict=True):
        assert (name, identity) == (was, same) and torch.equal(values, old)


# ------------------------------------------------------------------------------------------------------- what for


def test_a_class() -> None:
    model = build(Bend(8), Bend(8))
    assert sizes(model) == {} and "Where" in reasons(model, "first.slope")
    shrunk = []

    def shrink(module: Any) -> None:
        shrunk.append(module)
        update_width(module)

    with ruled(Bend, tie_channels, shrink):
        assert sizes(model) == {"a": 8, "b": 8}
        shrunk.clear()
        pruned = assert_pruned_right(model)
        assert (pruned.first.width, pruned.second.width) == (4, 4)
        assert (model.first.width, model.first.slope.shape) == (8, (8,))
        assert pruned.first in shrunk and pruned.second in shrunk
    assert sizes(model) == {} and "Where" in reasons(model, "first.slope")
    assert_runs(pruned, torch.randn(5, 6))


def test_without_shrink_an_attribute_is_found_as_any_other() -> None:
    with ruled(Bend, tie_channels):
        assert assert_pruned_right(build(Bend(8))).first.width == 4


def test_one_module_and_its_copies_but_no_other_of_its_class() -> None:
    model = build(Bend(8), Bend(8))
    with ruled(model.first, tie_channels, update_width):
        assert sizes(model) == {"a": 8}
        pruned = assert_pruned_right(model)
        assert (pruned.first.width, pruned.second.width) == (4, 8)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert sizes(twin) == {"a": 8}
        assert sizes(pruned) == {"a": 4} and sizes(build(Bend(8), Bend(8))) == {}
        assert set(model.state_dict()) == set(build(Bend(8), Bend(8)).state_dict())
        twin = pickle.loads(pickle.dumps(model))
    # The copies know the rule by a mark, which means nothing where nobody has registered it.
    assert sizes(twin) == sizes(model) == {} and find_layer_rule(twin.first) is None
    unregister_rule(model.first)  # once more does no harm


def test_a_module_rule_comes_before_that_of_its_class() -> None:
    model = build(Bend(8), Bend(8))
    with ruled(Bend, tie_channels, update_width), ruled(model.second, lambda links: None):
        assert sizes(model) == {"a": 8}
    with ruled(Bend, lambda links: None), ruled(Bend, tie_channels, update_width):
        assert sizes(model) == {"a": 8, "b": 8}  # the later one replaces the earlier


class _Mirror(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.flip(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # ty: ignore[incompatible-method-override]
        return grad.flip(1)


class Mirror(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _Mirror.apply(x)


def test_an_autograd_function() -> None:
    model = build(Mirror())
    assert sizes(model) == {"b": 8} and "no rule for the operation _Mirror" in reasons(model, "a.weight")
    with ruled(_Mirror, lambda links: links.tie(links.input().dim(1)[::-1], links.output().dim(1))):
        assert sizes(model) == {"a": 8, "b": 8}
        assert_pruned_right(model)
    assert sizes(model) == {"b": 8}


def test_an_operation_by_its_name() -> None:
    own, model = RULES["Relu"], build(nn.ReLU(), nn.Tanh())
    with ruled("Relu", lambda links: links.freeze(links.input().dim(1), "it must stay as it is")):
        assert sizes(model) == {"b": 8}
        assert reasons(model, "a.weight").count("Relu in first: it must stay as it is") == 1
        with ruled("Relu", lambda links: links.tie(links.input().dim(1), links.output().dim(1))):
            assert sizes(model) == {"a": 8, "b": 8}
        assert RULES["Relu"] is own
    assert RULES["Relu"] is own and sizes(model) == {"a": 8, "b": 8}
    with ruled("NobodysOperation", tie_channels):
        assert "NobodysOperation" in RULES
    assert "NobodysOperation" not in RULES


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.lstm, self.c = nn.Linear(6, 7), nn.LSTM(7, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.lstm(self.a(x))[0])


def test_a_rule_of_cleanai_for_a_layer_of_torch_is_replaced_and_in_force_again() -> None:
    """One that pairs the rows of one gate with the wrong units is caught by the proof."""

    def connect(links: Links) -> None:
        links.contract(links.tensor("weight_ih_l0").dim(1), links.input().dim(-1))
        hidden = links.output().dim(-1)
        links.contract(links.tensor("weight_hh_l0").dim(1), hidden)
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            gates = links.tensor(name).dim(0).chunk(4)
            links.tie(hidden, gates[0][::-1], *gates[1:])

    model = randomise(Remembers()).eval()
    expected = {"a": 7, "lstm.weight_ih_l0": 8}
    assert sizes(model) == expected
    with ruled(nn.LSTM, connect):
        assert sizes(model) == expected
        with pytest.raises(VerificationError, match="at fault is lstm"):
            StructuredPruner(model, torch.randn(2, 6), RandomImportance(3), 0.4).prune()
    with ruled(model.lstm, lambda links: None):
        assert sizes(model) == {}
    assert sizes(model) == expected
    assert assert_pruned_right(model).lstm.hidden_size == 4


# ------------------------------------------------------------------------------------------------------- subclasses


class Same(Bend):
    """Runs the forward of its class."""


class Doubled(Bend):
    """Has a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(1)) * 2


def test_a_subclass_inherits_unless_it_has_a_forward_of_its_own() -> None:
    with ruled(Bend, tie_channels, update_width):
        assert sizes(build(Same(8), Doubled(8))) == {"a": 8}
        assert assert_pruned_right(build(Same(8))).first.width == 4
        with ruled(
            Doubled,
            lambda links: links.tie(links.input().dim(1)[::-1], links.tensor("slope").dim(0), links.output().dim(1)),
            update_width,
        ):
            assert sizes(build(Same(8), Doubled(8))) == {"a": 8, "b": 8}
            assert assert_pruned_right(build(Doubled(8))).first.width == 4


# ---------------------------------------------------------------------------------------------------- wrong rules

TOO_LITTLE: dict[str, Connect] = {
    "nothing": lambda links: None,
    "the input alone": lambda links: links.tie(links.input().dim(1)),
    "without the slopes": lambda links: links.tie(links.input().dim(1), links.output().dim(1)),
    "without the input": lambda links: links.tie(links.tensor("slope").dim(0), links.output().dim(1)),
}


@pytest.mark.parametrize("name", TOO_LITTLE)
def test_what_a_rule_does_not_tie_stays_and_is_named(name: str) -> None:
    with ruled(Bend, TOO_LITTLE[name], update_width):
        model = build(Bend(8))
        pruned = assert_pruned_right(model)
        assert pruned.first.width == 8 and pruned.c.in_features == 4
        assert "the rule of Bend in first does not tie it" in reasons(model, "first.slope") + reasons(model, "a.weight")


WRONG: dict[str, Connect] = {
    "reversed": lambda links: links.tie(
        links.input().dim(1)[::-1], links.tensor("slope").dim(0), links.output().dim(1)
    ),
    "output on its own": lambda links: (
        links.tie(links.input().dim(1), links.tensor("slope").dim(0)),
        links.tie(links.output().dim(1)),
        links.keep_equal(links.input().dim(1), links.output().dim(1)),
    ),
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_is_caught_by_the_proof_and_nothing_is_changed(name: str, inplace: bool) -> None:
    model = build(Bend(8))
    with ruled(Bend, WRONG[name], update_width):
        pruner = StructuredPruner(model, torch.randn(2, 6), RandomImportance(3), 0.4, inplace=inplace)
        before = state_of(model)
        with pytest.raises(VerificationError, match=r"NOT equal to the masked original.*at fault is a"):
            pruner.prune()
        assert_same_state(model, before)


@pytest.mark.parametrize(
    "error", [ValueError, KeyError, RuntimeError, ZeroDivisionError, AssertionError, NotImplementedError]
)
def test_a_rule_that_raises_is_an_error_that_names_the_layer(error: type[Exception]) -> None:
    def connect(links: Links) -> None:
        raise error("planted")

    model = build(Bend(8))
    before = state_of(model)
    with ruled(Bend, connect):
        with pytest.raises(TraceError, match=r"Bend in first.*planted") as caught:
            analyze_model(model, torch.randn(2, 6))
        assert isinstance(caught.value.__cause__, error)
    assert_same_state(model, before)
    assert sizes(build(nn.Tanh())) == {"a": 8, "b": 8}


def test_a_shrink_that_raises_leaves_the_model_as_it_was() -> None:
    def shrink(module: Any) -> None:
        module.width = 1
        raise ValueError("planted")

    model = build(Bend(8))
    before = state_of(model)
    with ruled(Bend, tie_channels, shrink):
        with pytest.raises((ValueError, TraceError), match="planted"):
            StructuredPruner(model, torch.randn(2, 6), inplace=True).prune()
    assert_same_state(model, before)


# -------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize("target", [3, None, "", int, Tensor, [Bend], torch.relu])
def test_a_target_that_is_none_of_ours_is_refused(target: Any) -> None:
    with pytest.raises(InputError, match=r"register_rule: .* is no module"):
        register_rule(target, tie_channels)


def test_functions_that_are_none_are_refused() -> None:
    refused: list[tuple[Any, Any, Any]] = [(Bend, None, None), (Bend, "tie", None), (Bend, tie_channels, 3)]
    for target, connect, shrink in refused:
        with pytest.raises(InputError, match="must be functions"):
            register_rule(target, connect, shrink)
    for operation in (_Mirror, "Relu"):
        with pytest.raises(InputError, match="leave shrink out"):
            register_rule(operation, tie_channels, update_width)
    assert find_layer_rule(Bend(8)) is None and "_Mirror" not in RULES


MISTAKES: dict[str, tuple[Connect, str]] = {
    "sizes": (lambda links: links.tie(links.input().dim(1), links.tensor("slope").dim(0)[:4]), "same size"),
    "tensor": (lambda links: links.tensor("weight"), "no floating-point tensor 'weight'; there are slope"),
    "chunk": (lambda links: links.input().dim(1).chunk(3), "8 channels cannot be cut into 3 equal parts"),
    "dimension": (lambda links: links.input().dim(2), "has 2 dimensions; there is no dimension 2"),
    "dimension from the end": (lambda links: links.output().dim(-3), "there is no dimension -3"),
    "input": (lambda links: links.input(1), "has 1 floating-point arguments; there is no number 1"),
    "output": (lambda links: links.output(1), "has 1 floating-point results; there is no number 1"),
    "one by one": (lambda links: list(links.input().dim(1)), "take a slice, or chunk"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_rule_is_told_with_the_layer(name: str) -> None:
    connect, message = MISTAKES[name]
    with ruled(Bend, connect):
        with pytest.raises(TraceError, match=rf"Bend in first.*{message}"):
            analyze_model(build(Bend(8)), torch.randn(2, 6))


def test_what_a_rule_sees() -> None:
    seen: list[Any] = []

    def connect(links: Links) -> None:
        tie_channels(links)
        seen.append((links.module, links.where, links.input().shape, links.output().shape, links.tensor("slope").shape))
        seen.append((len(links.inputs), len(links.outputs), len(links.input().dim(1)), len(links.input().dim(-2))))
        seen.append(("slope" in links, "weight" in links, [len(part) for part in links.input().dim(1).chunk(4)]))

    model = build(Bend(8))
    with ruled(Bend, connect):
        analyze_model(model, torch.randn(2, 6))
    assert isinstance(seen[0][0], Bend) and "first" in seen[0][1] and seen[0][2:] == ((2, 8), (2, 8), (8,))
    assert seen[1] == (1, 1, 8, 2) and seen[2] == (True, False, [2, 2, 2, 2])


# ---------------------------------------------------------------------------------------------------- whole layers


def test_the_inside_of_a_layer_with_a_rule_is_not_traced() -> None:
    def kinds() -> list[str]:
        trace = trace_model(build(Bend(8)), torch.randn(2, 6))
        return [op.kind for op in trace.operations if op.module == "first" and op.state is None]

    assert {"Where", "Mul"} <= set(kinds())
    with ruled(Bend, tie_channels):
        assert len(kinds()) == 1


class Outside(nn.Module):
    """Computes out of autograd's sight; without a rule nothing behind it would be connected."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return x.detach() * self.slope


def test_a_layer_that_autograd_cannot_see_into() -> None:
    model = build(Outside(8))
    with ruled(Outside, tie_channels):
        assert sizes(model) == {"a": 8, "b": 8}
        pruner = StructuredPruner(model, torch.randn(2, 6), RandomImportance(3), 0.5)
        pruned: Any = pruner.prune()
        assert pruner.plan is not None and pruned.first.slope.shape == (4,)
        assert_equals_masked(model, pruned, pruner.plan, torch.randn(2, 6))


class Twice(nn.Module):
    """One layer called on two things that are then joined."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.bend, self.c = nn.Linear(6, 8), nn.Linear(6, 8), Bend(8), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([self.bend(self.a(x)), self.bend(self.b(x))], 1))


def test_two_calls_of_one_layer_tie_what_flows_through_both() -> None:
    with ruled(Bend, tie_channels, update_width):
        model = randomise(Twice()).eval()
        assert sizes(model) == {"a": 8}
        pruned = assert_pruned_right(model)
        assert (pruned.a.out_features, pruned.b.out_features, pruned.c.in_features) == (4, 4, 8)


class Cross(nn.Module):
    """Two tensors in, three out, a flag, a mask of truth values and something that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.shift = nn.Linear(8, 10), nn.Parameter(torch.empty(6))

    def forward(self, x: Tensor, mask: Tensor, *, other: Tensor, times: int = 1) -> dict[str, Any]:
        gate, value = self.both(x).chunk(2, 1)
        moved = torch.where(mask[:, None], other, other + self.shift)
        return {"gated": gate.sigmoid() * value * times, "moved": (moved, None), "text": "none", "pair": x * 2}


def connect_cross(links: Links) -> None:
    """The order is that of the arguments and of the results; the linear layer inside is one of the layer's tensors."""
    x, other = links.inputs
    gated, moved, pair = links.outputs
    links.contract(links.tensor("both.weight").dim(1), x.dim(1))
    for name in ("both.weight", "both.bias"):
        for half in links.tensor(name).dim(0).chunk(2):
            links.tie(half, gated.dim(1))
    links.tie(other.dim(1), links.tensor("shift").dim(0), moved.dim(1))
    links.tie(pair.dim(1), x.dim(1))


class CrossNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.cross = nn.Linear(6, 8), nn.Linear(6, 6), Cross()
        self.c, self.d, self.e = nn.Linear(5, 3), nn.Linear(6, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.cross(self.a(x), x[:, 0] > 0, other=self.b(x), times=2)
        return self.c(found["gated"]) + self.d(found["moved"][0]) + self.e(found["pair"])


def test_a_layer_with_several_inputs_and_outputs() -> None:
    with ruled(Cross, connect_cross):
        model = randomise(CrossNet()).eval()
        assert sizes(model) == {"a": 8, "b": 6, "cross.both": 5}
        roles = {
            (m.parameter, m.dim): m.role for g in analyze_model(model, torch.randn(2, 6)).groups for m in g.members
        }
        assert roles["cross.both.weight", 1] == "input" and roles["cross.both.weight", 0] == "output"
        pruned = assert_pruned_right(model, ratio=0.4)
        assert (pruned.cross.both.in_features, pruned.cross.both.out_features) == (5, 6)
        assert (pruned.cross.shift.shape, pruned.c.in_features, pruned.e.in_features) == ((4,), 3, 5)


class Shell(nn.Module):
    """A layer with a rule that holds another one with a rule."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.width = Bend(width), width

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + torch.ones(self.width, dtype=x.dtype, device=x.device)


def test_layers_with_rules_inside_each_other() -> None:
    def connect(links: Links) -> None:
        links.tie(links.input().dim(1), links.tensor("inner.slope").dim(0), links.output().dim(1))

    def shrink(module: Any) -> None:
        module.width = module.inner.slope.shape[0]

    model = build(Shell(8))
    with ruled(Bend, tie_channels, update_width):
        with ruled(Shell, connect, shrink):
            pruned = assert_pruned_right(model)
            assert pruned.first.width == pruned.first.inner.width == 4
        assert assert_pruned_right(model).first.width == 4  # looked into again: there are as many ones as it says


class Halves(nn.Module):
    """Gates made of the first half of its channels for the second, with a literal place to cut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.middle = width // 2

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x[:, : self.middle] > 0, x[:, : self.middle], x[:, self.middle :])


def test_pieces_of_a_dimension_and_equal_numbers() -> None:
    """The halves may be tied, or only be equally many (where the layer mixes them)."""

    class Swap(Halves):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x[:, :1] > 9, x, torch.cat([x[:, self.middle :], x[:, : self.middle]], 1))

    def tie(links: Links) -> None:
        links.tie(*links.input().dim(1).chunk(2), links.output().dim(1))

    def swap(links: Links) -> None:
        low, high = links.input().dim(1).chunk(2)
        links.tie(links.join(low, high), links.output().dim(1))
        links.tie(low, high)
        links.keep_equal(low, high)

    class HalfNet(Net):
        def __init__(self, first: nn.Module, width: int) -> None:
            super().__init__(first)
            self.b = nn.Linear(width, 8)

    with ruled(Halves, tie), ruled(Swap, swap):
        assert sizes(randomise(HalfNet(Halves(8), 4))) == {"a": 4, "b": 8}
        assert assert_pruned_right(randomise(HalfNet(Halves(8), 4)).eval()).first.middle == 2
        analysis = analyze_model(build(Swap(8)), torch.randn(2, 6))
        assert next(g for g in analysis.groups if g.name == "a").size == 4
