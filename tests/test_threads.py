"""Two threads that prune two models at the same time get what they would get one after the other."""

from __future__ import annotations

import copy
import random
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from quick import measure_briefly
from torch import Tensor, nn

from cleanai import PruningStep, StructuredPruner, evaluate_model, history_of, migrate_optimizer, rollback
from cleanai.isolation import preserve_random_state, seed_random_state
from cleanai.models import cifar_vit, digits_resnet
from cleanai.plots import figure_style

IMAGES = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 10
LONGEST = 120  # seconds that a thread may take; a deadlock would take for ever


class Shuffled:
    """A loader that draws from all three global generators, as users' loaders and transforms do."""

    def __iter__(self) -> Iterator[Any]:
        for part in torch.randperm(len(IMAGES)).split(4):
            noise = random.random() + float(np.random.rand())  # noqa: NPY002
            yield IMAGES[part] + 0.01 * noise, LABELS[part]


class Noisy(nn.Module):
    """Draws random numbers in its forward, in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(64, 12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.hidden(x.flatten(1)) + 0.1 * torch.randn((), dtype=x.dtype)))


def train_a_step(step: PruningStep) -> None:
    optimizer = torch.optim.SGD(step.model.parameters(), lr=0.01)
    nn.functional.cross_entropy(step.model(IMAGES), LABELS).backward()
    optimizer.step()


def prune_in_place(model: nn.Module) -> Any:
    pruner = StructuredPruner(model, IMAGES[:1], "wanda", 0.4, inplace=True, iterative_steps=2, keep_removed=True)
    pruner.collect_activations(Shuffled())
    pruner.prune(train_a_step)
    cut = copy.deepcopy(model.state_dict())
    return cut, rollback(model).state_dict()


def prune_by_gradients(model: nn.Module) -> Any:
    optimizer = torch.optim.Adam(model.parameters())
    pruner = StructuredPruner(model, IMAGES[:1], "hessian", 0.3, depth_pruning_ratio=0.3)
    pruner.collect_gradients(Shuffled())
    pruned = pruner.prune()
    assert pruner.plan is not None and len(history_of(pruned)) == 1
    migrate_optimizer(optimizer, pruner.plan, pruned)
    return pruned.state_dict(), pruner.score_groups()


def repair(model: nn.Module) -> Any:
    pruner = StructuredPruner(model, IMAGES[:1], "magnitude", 0.3, recover="least_squares")
    pruner.collect_activations(Shuffled())
    return pruner.prune().state_dict()


def prune_heads(model: nn.Module) -> Any:
    inputs = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return StructuredPruner(model, inputs, pruning_ratio=0.3, target="macs").prune().state_dict()


def prune_noise(model: nn.Module) -> Any:
    pruner = StructuredPruner(model, IMAGES[:1], "wanda", 0.5)
    statistics = pruner.collect_activations(Shuffled())
    pruned = pruner.prune()
    seen = {str(key): value.total for key, value in statistics.sides.items()}
    return pruned.state_dict(), seen, evaluate_model(pruned, Shuffled()).loss


JOBS: dict[str, tuple[Callable[[nn.Module], Any], Callable[[], nn.Module]]] = {
    "in place": (prune_in_place, lambda: digits_resnet(4)),
    "gradients": (prune_by_gradients, lambda: digits_resnet(4)),
    "repair": (repair, lambda: digits_resnet(4)),
    "heads": (prune_heads, lambda: cifar_vit(dim=8, depth=1, num_heads=2)),
    "noise": (prune_noise, Noisy),
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    measure_briefly(monkeypatch)


def flat(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape), value.detach().contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return [(key, flat(each)) for key, each in value.items()]
    return [flat(each) for each in value] if isinstance(value, (list, tuple)) else value


def random_states() -> Any:
    return torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())  # noqa: NPY002


def at_once(*tasks: Callable[[], Any]) -> list[Any]:
    """What several functions give that threads start together; raises what one of them raised."""
    barrier = threading.Barrier(len(tasks))
    results: list[Any] = [None] * len(tasks)
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            barrier.wait()
            results[number] = tasks[number]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONGEST)
        assert not thread.is_alive(), "a deadlock"
    for error in errors:
        raise error
    return results


@pytest.mark.parametrize(
    "pair",
    [
        ("in place", "gradients"),
        ("gradients", "repair"),
        ("repair", "heads"),
        ("heads", "noise"),
        ("noise", "in place"),
        ("noise", "noise"),
    ],
    ids=" and ".join,
)
def test_two_at_once_give_what_each_gives_alone(pair: tuple[str, str]) -> None:
    torch.manual_seed(0)
    jobs = [JOBS[name][0] for name in pair]
    models = [JOBS[name][1]() for name in pair]
    seed_random_state(7)
    states, filters = random_states(), list(warnings.filters)
    alone = [flat(job(copy.deepcopy(model))) for job, model in zip(jobs, models, strict=True)]
    assert random_states() == states
    for _ in range(2):
        copies = copy.deepcopy(models)
        found = at_once(
            *(lambda job=job, model=model: flat(job(model)) for job, model in zip(jobs, copies, strict=True))
        )
        assert found == alone
        assert random_states() == states
        assert warnings.filters == filters
        for name, model, kept in zip(pair, copies, models, strict=True):
            if name != "in place":
                assert flat(model.state_dict()) == flat(kept.state_dict())


def test_a_second_thread_waits_for_the_generators() -> None:
    seed_random_state(3)
    states = random_states()
    inside, left = threading.Event(), threading.Event()
    order = []

    def first() -> float:
        with preserve_random_state():
            inside.set()
            left.wait(0.2)  # the second one would be in by now
            order.append("first")
            return float(torch.rand(()))

    def second() -> float:
        inside.wait(LONGEST)
        with preserve_random_state():
            order.append("second")
            left.set()
            return float(torch.rand(()))

    drawn = at_once(first, second)
    assert order == ["first", "second"]
    assert drawn[0] == drawn[1]
    assert random_states() == states


def test_an_error_lets_the_other_thread_go_on() -> None:
    with pytest.raises(KeyboardInterrupt), preserve_random_state(), preserve_random_state():
        raise KeyboardInterrupt
    assert at_once(lambda: _draw(), lambda: _draw())[0] is not None


def _draw() -> float:
    with preserve_random_state():
        return float(torch.rand(()))


def test_a_callback_may_wait_for_another_thread_that_prunes() -> None:
    torch.manual_seed(0)
    models = [digits_resnet(4), digits_resnet(4)]
    widths = []

    def callback(step: PruningStep) -> None:
        (pruned,) = at_once(lambda: StructuredPruner(models[1], IMAGES[:1], pruning_ratio=0.5).prune())
        widths.append(sum(p.numel() for p in pruned.parameters()))

    StructuredPruner(models[0], IMAGES[:1], pruning_ratio=0.5).prune(callback)
    assert len(widths) == 1 and widths[0] < sum(p.numel() for p in models[1].parameters())


def test_the_style_of_figures_comes_back() -> None:
    before = dict(mpl.rcParams)

    def style() -> float:
        for _ in range(20):
            with figure_style():
                size = mpl.rcParams["font.size"]
        return size

    sizes = at_once(style, style, style)
    assert len({*sizes}) == 1
    assert dict(mpl.rcParams) == before
