"""What the graph does not say: writes to parts, functions of the user's own, hidden paths, caches, casts, routers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nets import conv, randomise
from oracle import assert_equals_masked, assert_runs
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointFunction, checkpoint

from cleanai import RandomImportance, StructuredPruner, TraceError, analyze_model
from cleanai.rules import RULES
from cleanai.trace import trace_model

Function = Callable[[Tensor], Tensor]
IMAGE = torch.linspace(-1.0, 1.0, 2 * 3 * 6 * 6).sin().reshape(2, 3, 6, 6)


class Between(nn.Module):
    """Three convolutions with a function of the second one's eight channels before the third."""

    def __init__(self, function: Function, bend: Function = torch.tanh) -> None:
        super().__init__()
        width = function(torch.zeros(2, 8, 6, 6)).shape[1]
        self.a, self.b, self.c = conv(3, 6), conv(6, 8), conv(width, 5)
        self.function, self.bend = function, bend

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.function(self.b(self.bend(self.a(x)))))


def sizes(pruner: StructuredPruner) -> dict[str, int]:
    """{group: units} of all groups that can be pruned."""
    return {group.name: group.size for group in pruner.groups if group.size > 1}


def reason(pruner: StructuredPruner, parameter: str) -> str:
    """Why the channels of a parameter stay."""
    return "; ".join(f.reason for f in pruner.frozen if parameter in {name for name, _ in f.parameters})


def prune(model: nn.Module, inputs: Any, ratios: tuple[float, ...] = (0.3, 0.65)) -> tuple[Any, StructuredPruner]:
    """Pruned at some ratios, each time equal to the masked original by both oracles; the last one is returned."""
    model = randomise(model).eval()
    for ratio in ratios:
        pruner = StructuredPruner(model, inputs, RandomImportance(2), ratio)
        pruned = pruner.prune()
        assert pruner.plan is not None and pruner.verification is not None and pruner.verification.passed
        assert_equals_masked(model, pruned, pruner.plan, inputs)
    assert_runs(pruned, inputs)
    return pruned, pruner


# ---------------------------------------------------------------------------------------------- writes to a part


def written(write: Callable[[Tensor], object]) -> Function:
    """A function that writes to a part of what it is given."""

    def function(x: Tensor) -> Tensor:
        write(x)
        return x

    return function


def put(value: Callable[[Tensor], Any], *place: Any) -> Function:
    """A function that puts something computed from a tensor at a place in it."""
    return written(lambda x: x.__setitem__(place, value(x)))


def _one_half(x: Tensor) -> None:
    half = x.shape[1] // 2
    x[:, :half] = x[:, half:] * 2


def _half_by_half(x: Tensor) -> Tensor:
    half = x.shape[1] // 2
    new = x.new_zeros(x.shape)
    new[:, :half] = x[:, half:]
    new[:, half:] = torch.tanh(x[:, :half])
    return new


def _wider(x: Tensor) -> Tensor:
    new = x.new_empty(x.shape[0], 2 * x.shape[1], *x.shape[2:])
    new[:, : x.shape[1]] = x
    new[:, x.shape[1] :] = x * x
    return new


def _shift(x: Tensor) -> Tensor:
    """Rows moved down by one, the first one doubled, as temporal shifts do."""
    new = torch.empty_like(x)
    new[:, :, 1:] = x[:, :, :-1]
    new[:, :, 0] = x[:, :, 0] * 2
    return new


def _frame(x: Tensor) -> Tensor:
    """Written into the middle of a larger tensor of zeros."""
    new = x.new_zeros(*x.shape[:2], 8, 9)
    new[:, :, 1:7, 2:8] = x
    return F.avg_pool2d(new, 2)


def _joined(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(x.shape[0], x.shape[1], 2, 6)], 2)


def _new_whole(x: Tensor) -> Tensor:
    new = torch.empty_like(x)
    new[:] = x * 2
    return new


HERE, ALL = slice(None), ...
WRITES: dict[str, tuple[Function, int]] = {
    "a row": (put(lambda x: x[:, :, 1] * 2, HERE, HERE, 0), 8),
    "every second column": (put(lambda x: x[..., 1::2].tanh(), ALL, slice(None, None, 2)), 8),
    "rows added": (written(lambda x: x[:, :, :3].add_(x[:, :, 3:] * 2)), 8),
    "columns added": (written(lambda x: x[..., 1:3].__iadd__(x[..., :2].clone())), 8),
    "a sample multiplied": (written(lambda x: x[0].mul_(2)), 8),
    "a sample by a sample": (put(lambda x: x[1].sigmoid(), 0), 8),
    "a corner cleared": (written(lambda x: x[:, :, 1:3, 2:].zero_()), 8),
    "a number": (put(lambda x: 0.5, ALL, 0), 8),
    "a constant row": (put(lambda x: torch.arange(6.0).to(x), ALL, 1, HERE), 8),
    "everything": (put(lambda x: x.clone() * 2, HERE), 8),
    "everything copied": (lambda x: x.clone().copy_(x * 2), 8),
    "a new tensor whole": (_new_whole, 8),
    "one half by the other": (written(_one_half), 4),
    "new, half by half": (_half_by_half, 8),
    "new, row by row": (_shift, 8),
    "a part of zeros": (_frame, 8),
    "rows of ones after it": (_joined, 8),
    "wider": (_wider, 8),
}


@pytest.mark.parametrize("name", WRITES)
def test_channels_are_free_where_a_write_leaves_them_apart(name: str) -> None:
    function, units = WRITES[name]
    _, pruner = prune(Between(function), IMAGE)
    assert sizes(pruner) == {"a": 6, "b": units}


KEPT: dict[str, tuple[Function, str]] = {
    "literal places": (put(lambda x: x[:, 2:4] * 2, HERE, slice(2)), "does not follow a cut of it"),
    "a literal part cleared": (written(lambda x: x[:, :3].zero_()), "writes to a part of it"),
    "every second channel": (put(lambda x: x[:, 1::2] * 2, HERE, slice(None, None, 2)), "picks from it by position"),
    "one channel": (put(lambda x: x[:, 1] * 2, HERE, 0), "by position|to a single place|writes to a part"),
    "a number in one channel": (put(lambda x: 0.5, HERE, 3), "writes to a part of it"),
    "channels picked by a list": (put(lambda x: x[:, 1:3] * 2, HERE, [0, 5]), "by position|writes to a part"),
}


@pytest.mark.parametrize("name", KEPT)
def test_channels_stay_where_a_write_goes_by_their_places(name: str) -> None:
    function, text = KEPT[name]
    _, pruner = prune(Between(function), IMAGE, (0.5,))
    assert sizes(pruner) == {"a": 6}
    assert any(part in reason(pruner, "b.weight") for part in text.split("|")), reason(pruner, "b.weight")


def test_half_of_the_channels_scaled_at_a_computed_place_is_pruned_right_or_not_at_all() -> None:
    def scale_half(x: Tensor) -> None:
        x[:, : x.shape[1] // 2] *= 0.5

    _, pruner = prune(Between(written(scale_half)), IMAGE)
    assert sizes(pruner) in ({"a": 6}, {"a": 6, "b": 8})


@pytest.mark.parametrize("added", [False, True])
def test_two_layers_written_side_by_side(added: bool) -> None:
    """Two groups; where the second part is added, it is read first, at a place that might be any: equal shares go."""

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = conv(3, 4), conv(3, 6), conv(10, 5)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.a(x), self.b(x)
            joined = x.new_zeros(x.shape[0], a.shape[1] + b.shape[1], *x.shape[2:])
            joined[:, : a.shape[1]] = a
            if added:
                joined[:, a.shape[1] :] += b
            else:
                joined[:, a.shape[1] :] = b
            return self.c(torch.tanh(joined))

    pruned, pruner = prune(Joined(), IMAGE, (0.5,))
    assert sizes(pruner) == ({"a": 10} if added else {"a": 4, "b": 6})
    assert (pruned.a.out_channels, pruned.b.out_channels, pruned.c.in_channels) == (2, 3, 5)


# ------------------------------------------------------------------------------------------ functions of one's own


def make_function(name: str, forward: Function, backward: Function) -> Function:
    """A `torch.autograd.Function` of one argument."""

    def run(ctx: Any, x: Tensor) -> Tensor:
        return forward(x)

    def back(ctx: Any, grad: Tensor) -> Tensor:
        return backward(grad)

    methods = {"forward": staticmethod(run), "backward": staticmethod(back)}
    return type(name, (torch.autograd.Function,), methods).apply


class _Scaled(torch.autograd.Function):
    """Each channel times a parameter, and its square beside it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, times: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, scale)
        ctx.times = times
        return x * scale[:, None, None] * times, x * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, scale = ctx.saved_tensors
        first = grads[0] * ctx.times
        return first * scale[:, None, None] + 2 * x * grads[1], (first * x).sum((0, 2, 3)), None


class ScaledNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.b, self.c, self.scale = conv(3, 8), conv(8, 5), nn.Parameter(torch.empty(8))

    def forward(self, x: Tensor) -> Tensor:
        first, second = _Scaled.apply(self.b(x), self.scale, 2.0)
        return self.c(first + second.tanh())


def test_a_function_with_a_parameter_and_two_results() -> None:
    pruned, pruner = prune(ScaledNet(), IMAGE, (0.5,))
    assert sizes(pruner) == {"b": 8} and pruned.scale.shape == (4,)


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(1, keepdim=True)


def _flip(x: Tensor) -> Tensor:
    return x.flip(1)


def _near(x: Tensor) -> Tensor:
    return x + x.roll(1, 1)


def _ramp(x: Tensor) -> Tensor:
    return x * torch.arange(1, x.shape[1] + 1, device=x.device)[:, None, None]


def _same(grad: Tensor) -> Tensor:
    return grad


FUNCTIONS: dict[str, tuple[Function, int, str]] = {
    "element by element": (make_function("Twice", lambda x: x * 2, lambda g: g * 2), 8, ""),
    "rounded, gradient passed through": (make_function("Rounded", torch.round, _same), 8, ""),
    "gradient reversed": (make_function("Reversed", lambda x: x.clone(), lambda g: -g), 8, ""),
    "over positions": (make_function("Rolled", lambda x: x.roll(1, 2), lambda g: g.roll(-1, 2)), 8, ""),
    "channels mixed": (make_function("Mixed", _centred, _centred), 0, "no rule for the operation Mixed"),
    "channels moved": (make_function("Moved", _flip, _flip), 0, "no rule for the operation Moved"),
    "a gradient of nothing": (make_function("Stopped", torch.sign, torch.zeros_like), 0, "no rule for the operation"),
    # What a straight-through gradient hides only shows where a cut is tried.
    "neighbours, gradient passed through": (
        make_function("Near", _near, _same),
        0,
        "a cut of it changes what follows Near",
    ),
    "places, gradient passed through": (
        make_function("Ramp", _ramp, _same),
        0,
        "a cut of it changes what follows Ramp",
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_the_users_own(name: str) -> None:
    function, units, text = FUNCTIONS[name]
    _, pruner = prune(Between(function), IMAGE, (0.5,))
    assert sizes(pruner) == {"a": 6, **({"b": units} if units else {})}
    assert text in reason(pruner, "b.weight")


# --------------------------------------------------------------------------------------- operations without a rule

UNKNOWN: dict[str, tuple[str, Function, int]] = {
    "tanh": ("Tanh", torch.tanh, 8),
    "product": ("Mul", lambda x: x * x.sin(), 8),
    "pooling": ("AvgPool2D", lambda x: F.avg_pool2d(x, 2), 8),
    "maximum pooling": ("MaxPool2DWithIndices", lambda x: F.max_pool2d(x, 2), 8),
    "softmax over positions": ("Softmax", lambda x: x.softmax(2), 8),
    "softmax over channels": ("Softmax", lambda x: x.softmax(1), 0),
    "sums over channels": ("Cumsum", lambda x: x.cumsum(1), 0),
    "flip": ("Flip", lambda x: x.flip(1), 0),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_operation_without_a_rule_is_tried(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, function, units = UNKNOWN[name]
    monkeypatch.delitem(RULES, kind)
    model = randomise(Between(function, nn.ReLU())).eval()
    pruner = StructuredPruner(model, IMAGE, RandomImportance(1), 0.5)
    pruner.prune()
    assert sizes(pruner) == {"a": 6, **({"b": units} if units else {})}
    assert units or f"no rule for the operation {kind}" in reason(pruner, "b.weight")


# ----------------------------------------------------------------------------------------------------- checkpoints


class Checkpointed(nn.Module):
    """Two blocks run under a checkpoint, one checkpoint inside the other."""

    def __init__(self, reentrant: bool, fails: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c, self.reentrant, self.fails = conv(3, 8), conv(8, 6), conv(6, 5), reentrant, fails

    def inner(self, x: Tensor) -> Tensor:
        if self.fails:
            raise ValueError("planted")
        return torch.tanh(self.b(x))

    def outer(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, torch.tanh(self.a(x)), use_reentrant=self.reentrant)

    def forward(self, x: Tensor) -> Tensor:
        x = x.requires_grad_() if self.training else x
        return self.c(checkpoint(self.outer, x, use_reentrant=self.reentrant))


def assert_checkpoints_are_torchs() -> None:
    """`CheckpointFunction` runs as torch wrote it."""
    assert "apply" not in vars(CheckpointFunction)
    x = torch.ones(2, requires_grad=True)
    result = checkpoint(torch.exp, x, use_reentrant=True)
    assert type(result.grad_fn).__name__ == "CheckpointFunctionBackward"


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of the inner one, as torch does it
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_are_looked_through_and_go_on_working(reentrant: bool) -> None:
    pruned, pruner = prune(Checkpointed(reentrant), IMAGE, (0.5,))
    assert sizes(pruner) == {"a": 8, "b": 6}
    assert_checkpoints_are_torchs()
    pruned.train()(IMAGE.clone()).sum().backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())


def test_a_forward_that_fails_inside_a_checkpoint_leaves_checkpoints_as_they_are() -> None:
    with pytest.raises(TraceError, match="planted"):
        trace_model(Checkpointed(True, fails=True), IMAGE)
    assert_checkpoints_are_torchs()


def test_checkpoints_of_other_threads_are_not_touched_while_a_trace_is_recorded() -> None:
    inside, go_on = threading.Event(), threading.Event()

    class Waits(Checkpointed):
        def inner(self, x: Tensor) -> Tensor:
            inside.set()
            assert go_on.wait(60)
            return super().inner(x)

    kinds: list[list[str]] = []
    thread = threading.Thread(
        target=lambda: kinds.append([op.kind for op in trace_model(Waits(True), IMAGE).operations])
    )
    thread.start()
    assert inside.wait(60)
    x = torch.ones(2, requires_grad=True)
    result = checkpoint(torch.exp, x, use_reentrant=True)
    go_on.set()
    thread.join(60)
    assert type(result.grad_fn).__name__ == "CheckpointFunctionBackward"
    result.sum().backward()
    assert x.grad is not None and torch.allclose(x.grad, x.detach().exp())
    assert kinds and "CheckpointFunction" not in kinds[0] and kinds[0].count("Convolution") == 3
    assert_checkpoints_are_torchs()


# ---------------------------------------------------------------------------------------------------------- caches


class Caches(nn.Module):
    """Position tables that the first forward computes and keeps in one of several ways, and the features it saw."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.how = nn.Linear(6, 8), nn.Linear(8, 4), how
        self.table, self.tables, self.listed, self.pair, self.seen = None, {}, [], (), None

    def look_up(self, x: Tensor) -> Tensor:
        """The table for so many positions."""
        made = torch.linspace(0.5, 1.5, x.shape[1], device=x.device, dtype=x.dtype)[:, None]
        if self.how == "attribute":
            self.table = made if self.table is None else self.table
            return self.table
        if self.how == "dict":
            return self.tables.setdefault(x.shape[1], made)
        if self.how == "list":
            self.listed.append(made)
            return self.listed[0]
        if self.how == "dict of tuples":
            return self.tables.setdefault(x.shape[1], (made, made))[0]
        self.pair = self.pair or (made, made)
        return self.pair[1]

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x)) * self.look_up(x)
        self.seen = x
        return self.b(x)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("how", ["attribute", "dict", "list", "tuple", "dict of tuples"])
def test_tensors_that_a_forward_has_kept(how: str, mode: Callable[[], Any]) -> None:
    model, inputs = randomise(Caches(how)), torch.randn(2, 5, 6)
    with mode():
        model(inputs)
    kept = [model.table, dict(model.tables), list(model.listed), model.pair, model.seen]
    pruner = StructuredPruner(model, inputs, RandomImportance(1), 0.5, inplace=mode is torch.enable_grad)
    pruned: Any = pruner.prune()
    assert sizes(pruner) == {"a": 8} or pruner.inplace
    assert pruned.a.out_features == 4 and pruned(inputs).shape == (2, 5, 4)
    now = [model.table, dict(model.tables), list(model.listed), model.pair, model.seen]
    if not pruner.inplace:
        assert all(a is b or str(a) == str(b) for a, b in zip(kept, now, strict=True))
        x = torch.tanh(pruned.a(inputs)) * torch.linspace(0.5, 1.5, 5)[:, None]
        torch.testing.assert_close(pruned(inputs), pruned.b(x))


# ----------------------------------------------------------------------------------------------------------- casts

CASTS: dict[str, Function] = {
    "float": lambda x: x.float(),
    "to": lambda x: x.to(torch.float32),
    "type": lambda x: x.type(torch.float32),
    "half": lambda x: x.to(torch.bfloat16),
    "argument of a sum": lambda x: x - x.mean(-1, keepdim=True, dtype=torch.float32),
    "argument of a softmax": lambda x: x * x.softmax(1, dtype=torch.float32),
    "a new tensor": lambda x: x + torch.ones(x.shape[1], 1, dtype=torch.float32, device=x.device),
    "type of another": lambda x: x.type_as(torch.ones(1)),
}


class Casts(nn.Module):
    """LLaMA's norm with a cast of one kind before it, and back to what came in."""

    def __init__(self, cast: Function) -> None:
        super().__init__()
        self.a, self.b, self.cast = nn.Linear(6, 8), nn.Linear(8, 4), cast
        self.weight = nn.Parameter(torch.empty(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = self.cast(x)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.b(self.weight * y.to(x.dtype))


@pytest.mark.parametrize("name", CASTS)
def test_a_forward_that_casts_is_proven_in_float64(name: str) -> None:
    model, inputs = randomise(Casts(CASTS[name])), torch.randn(2, 5, 6)
    pruner = StructuredPruner(model, inputs, RandomImportance(1), 0.5)
    pruned: Any = pruner.prune()
    assert pruner.verification is not None and pruner.plan is not None
    assert (pruner.verification.dtype, pruner.verification.max_relative_error < 1e-12) == ("float64", True)
    kept = list(pruner.plan.kept("a.weight", 0))
    y = CASTS[name](model.a(inputs)[..., kept])
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
    expected = F.linear(model.weight[kept] * y.float(), model.b.weight[:, kept], model.b.bias)
    torch.testing.assert_close(pruned(inputs), expected)


def test_a_part_of_many_values_that_is_read_after_a_write_to_the_whole() -> None:
    """More values than NumPy's buffer holds, in a shape that ends in ones: its unravel_index needs them flat."""

    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 8400, 1), nn.Conv2d(4200, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv1(x)
            part = x[:, : x.shape[1] // 2]
            x.mul_(2)
            return self.conv2(part)

    analysis = analyze_model(randomise(Written()), torch.randn(2, 3, 1, 1))
    assert [group.size for group in analysis.groups] == [8400]


# ---------------------------------------------------------------------------------------------------------- routers


class Expert(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Mixture(nn.Module):
    """Each token goes to its best experts, whose results are added where the tokens stand."""

    def __init__(self, best: int, experts: int = 4) -> None:
        super().__init__()
        self.embed, self.router, self.best = nn.Linear(6, 8), nn.Linear(8, experts), best
        self.experts, self.head = nn.ModuleList(Expert(8, 10) for _ in range(experts)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        x = self.embed(x).flatten(0, 1)
        weights, chosen = self.router(x).softmax(-1).topk(self.best, -1)
        result = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            if len(token):
                result.index_add_(0, token, expert(x[token]) * weights[token, place, None])
        return self.head((x + result).unflatten(0, (n, t)))


class TirelessMixture(Mixture):
    """Calls every expert, those too that no token reaches."""

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        x = self.embed(x).flatten(0, 1)
        weight, chosen = self.router(x).softmax(-1).max(-1)
        result = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            (token,) = torch.where(chosen == number)
            result = result.index_add(0, token, expert(x[token]) * weight[token, None])
        return self.head((x + result).unflatten(0, (n, t)))


class BatchedMixture(nn.Module):
    """The experts' weights in one tensor, the best ones of each token looked up."""

    def __init__(self, best: int) -> None:
        super().__init__()
        self.embed, self.router, self.head, self.best = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 3), best
        self.up, self.down = nn.Parameter(torch.empty(4, 8, 10)), nn.Parameter(torch.empty(4, 10, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        weights, chosen = self.router(x).softmax(-1).topk(self.best, -1)
        every = torch.einsum("btd,edh->bteh", x, self.up)
        every = torch.einsum("bteh,ehd->bted", F.silu(every), self.down)
        picked = every.gather(2, chosen[..., None].expand(*chosen.shape, x.shape[-1]))
        return self.head(x + (picked * weights[..., None]).sum(2))


def some_tokens(*shape: int, seed: int = 0) -> Tensor:
    """Random tokens, the same in every run."""
    return torch.randn(*shape, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", [0, 3, 5])
@pytest.mark.parametrize("best", [1, 2])
def test_experts_that_a_router_chooses(best: int, seed: int) -> None:
    pruned, pruner = prune(Mixture(best), some_tokens(3, 7, seed=seed))
    assert sizes(pruner) == {"embed": 8, **{f"experts.{index}.gate": 10 for index in range(4)}}
    assert "Topk" in reason(pruner, "router.weight") and pruned.router.out_features == 4
    for expert in pruned.experts:
        assert expert.gate.out_features == expert.up.out_features == expert.down.in_features == 4
        assert expert.gate.in_features == expert.down.out_features == pruned.router.in_features == 3
    assert_runs(pruned, some_tokens(2, 9))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_experts_that_are_called_with_no_token_say_nothing_of_what_exists(seed: int) -> None:
    pruned, pruner = prune(TirelessMixture(1), some_tokens(1, 2, seed=seed))
    assert sizes(pruner) == {"embed": 8, **{f"experts.{index}.gate": 10 for index in range(4)}}
    assert_runs(pruned, some_tokens(2, 9))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_experts_that_the_example_does_not_reach_follow_what_they_read(seed: int) -> None:
    """One token reaches one expert; the others are looked for."""
    pruned, pruner = prune(Mixture(1), some_tokens(1, 1, seed=seed), (0.5,))
    assert sizes(pruner) == {"embed": 8, **{f"experts.{index}.gate": 10 for index in range(4)}}
    assert not pruner.warnings
    assert pruned(some_tokens(4, 30)).shape == (4, 30, 3)


def test_an_expert_that_no_input_reaches_is_never_left_behind() -> None:
    """Its weights are not chosen by any tokens, but a fine-tuned router may choose it: what it reads must fit."""
    model = randomise(Mixture(1))
    with torch.no_grad():
        model.router.weight[2], model.router.bias[2] = 0.0, -100.0
    pruned: Any = StructuredPruner(model, some_tokens(3, 7), RandomImportance(1), 0.5).prune()
    assert pruned.embed.out_features == 4
    with torch.no_grad():
        pruned.router.bias[2] = 200.0
    assert pruned(some_tokens(3, 7)).shape == (3, 7, 3)


@pytest.mark.parametrize("best", [1, 2])
def test_batched_experts(best: int) -> None:
    pruned, pruner = prune(BatchedMixture(best), some_tokens(3, 7))
    assert sizes(pruner) == {"embed": 8, "up": 10}
    assert pruned.up.shape == (4, 3, 4) and pruned.down.shape == (4, 4, 3)
    assert analyze_model(pruned, torch.randn(1, 2, 6)).groups
