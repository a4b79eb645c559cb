"""Forward passes side by side: what they bring is what plain forwards bring, and whatever happens, all of them end."""

from __future__ import annotations

import threading
from collections.abc import Generator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cleanai import InputError
from cleanai.lockstep import Lockstep


def count_passes() -> int:
    return sum(type(thread).__module__ == "cleanai.lockstep" for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def no_pass_is_left() -> Generator[None]:
    assert count_passes() == 0
    yield
    assert count_passes() == 0


def make_net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).eval()


BATCHES = [torch.randn(size, 3, generator=torch.Generator().manual_seed(size)) for size in (4, 4, 1)]


def test_modules_are_called_with_what_a_plain_forward_calls_them_with() -> None:
    net = make_net()
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()]
    seen = {
        path: [(net if end == 0 else net[:end])(batch).detach() for batch in BATCHES]
        for path, end in (("2", 2), ("4", 4))
    }
    with Lockstep(net, BATCHES, ["2", "4"]) as passes:
        assert count_passes() == 3
        for path, expected in seen.items():
            calls = passes.reach(path)
            assert all(not kwargs for _, kwargs in calls)
            assert all(torch.equal(args[0], value) for (args, _), value in zip(calls, expected, strict=True))
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()] == hooks


def test_what_is_changed_at_a_stop_counts_from_there_on() -> None:
    net = make_net()
    before = [net[:4](batch).detach() for batch in BATCHES]
    with Lockstep(net, BATCHES, ["2", "4"]) as passes:
        passes.reach("2")
        with torch.no_grad():
            net[2].bias += 1.0
        calls = passes.reach("4")
    after = [net[:4](batch).detach() for batch in BATCHES]
    assert all(torch.equal(args[0], value) for (args, _), value in zip(calls, after, strict=True))
    assert not any(torch.equal(args[0], value) for (args, _), value in zip(calls, before, strict=True))


def test_keyword_arguments_and_a_function_that_calls_the_model() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 2)

        def forward(self, x: Tensor, scale: float) -> Any:
            return self.inner(input=x * scale)

    net = Net()
    for batches, forward in (
        ([{"x": BATCHES[0], "scale": 2.0}], None),
        (BATCHES[:1], lambda model, x: model(x, scale=2.0)),
    ):
        with Lockstep(net, batches, ["inner"], forward) as passes:
            args, kwargs = passes.reach("inner")[0]
        assert not args and torch.equal(kwargs["input"], BATCHES[0] * 2.0)


def test_a_forward_that_fails_says_which_batch_it_was() -> None:
    net = make_net()
    with pytest.raises(InputError, match=r"cannot run on batch 1 of the loader \(RuntimeError: .*shapes"):
        with Lockstep(net, [BATCHES[0], torch.ones(2, 7), BATCHES[1]], ["2"]) as passes:
            passes.reach("2")


def fail_at(path: str) -> None:
    with Lockstep(make_net(), BATCHES, [path]) as passes:
        passes.reach(path)
        raise KeyError("mine")


def test_an_error_of_the_caller_ends_all_passes() -> None:
    with pytest.raises(KeyError, match="mine"):
        fail_at("2")


def test_nothing_needs_to_be_reached() -> None:
    with Lockstep(make_net(), BATCHES, ["2"]):
        pass


@pytest.mark.parametrize("again", [False, True])
def test_a_module_that_is_not_called_is_named(again: bool) -> None:
    net = make_net()
    net.spare = nn.Linear(2, 2)
    net.forward = lambda x: net[0](x)  # the copies call the same
    with Lockstep(net, BATCHES, ["spare"]) as passes:
        for _ in range(1 + again):
            with pytest.raises(InputError, match="the module spare is not called in every forward"):
                passes.reach("spare")


def test_a_model_that_catches_everything_ends_too() -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            for layer in (self.first, self.second):
                try:
                    x = layer(x)
                except BaseException:
                    continue
            return x

    with Lockstep(Stubborn(), BATCHES, ["first", "second"]) as passes:
        passes.reach("first")


def test_gradients_are_off_in_the_passes() -> None:
    with Lockstep(make_net(), BATCHES, ["4"]) as passes:
        assert not any(args[0].requires_grad for args, _ in passes.reach("4"))
