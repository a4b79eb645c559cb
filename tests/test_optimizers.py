"""Training goes on after a cut: the optimizer's state follows its parameters."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cleanai import InputError, Plan, PruningStep, StructuredPruner, migrate_optimizer, slice_model
from cleanai.models import digits_resnet

IMAGES = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16) % 10
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3, amsgrad=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3, momentum=0.5, centered=True),
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> list[float]:
    losses = []
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(IMAGES), LABELS)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def build(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return digits_resnet(8)


def held(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_is_cut_like_its_parameter(name: str, inplace: bool) -> None:
    model = build()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer)
    before = {path: copy.deepcopy(optimizer.state[p]) for path, p in model.named_parameters()}
    pruner = StructuredPruner(model, IMAGES[:1], inplace=inplace)
    pruned = pruner.prune()
    assert pruner.plan is not None
    assert migrate_optimizer(optimizer, pruner.plan) is optimizer
    assert [id(p) for p in held(optimizer)] == [id(p) for p in pruned.parameters()]
    cut: dict[str, list[Any]] = {}
    for each in pruner.plan.cuts:
        cut.setdefault(each.parameter, []).append(each)
    for path, parameter in pruned.named_parameters():
        state = optimizer.state[parameter]
        assert state.keys() == before[path].keys()
        for key, value in state.items():
            old = before[path][key]
            if isinstance(old, Tensor) and old.dim():
                for each in cut.get(path, ()):
                    old = old.index_select(each.dim, torch.tensor(each.kept))
                assert value.shape == parameter.shape
                assert torch.equal(value, old), (path, key)
            else:
                assert value == old
    train(pruned, optimizer)


def test_training_with_dead_channels_is_training_without_them() -> None:
    """Channels whose weights, gradients and momentum are zero change nothing: cut or not, the steps are the same."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        for dead in (1, 4):
            model[0].weight[dead], model[0].bias[dead], model[2].weight[:, dead] = 0.0, -1.0, 0.0
    x, y = torch.randn(20, 4).double(), torch.arange(20) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step(net: nn.Module, by: torch.optim.Optimizer) -> None:
        by.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        by.step()

    for _ in range(3):
        step(model, optimizer)
    whole = copy.deepcopy((model, optimizer.state_dict()))
    pruner = StructuredPruner(model, x[:1], layer_pruning_ratios={"0": 1 / 3}, pruning_ratio=0.0)
    pruned: Any = pruner.prune()
    assert pruner.plan is not None and pruner.plan.kept("0.weight", 0) == (0, 2, 3, 5)
    migrate_optimizer(optimizer, pruner.plan)
    reference: Any = whole[0]
    other = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    other.load_state_dict(whole[1])
    for _ in range(3):
        step(pruned, optimizer)
        step(reference, other)
    assert torch.allclose(pruned[0].weight, reference[0].weight[[0, 2, 3, 5]], rtol=1e-12)
    assert torch.allclose(pruned(x), reference(x), rtol=1e-12)


def test_the_loss_goes_on_without_a_jump_that_a_fresh_optimizer_shows() -> None:
    """Momentum that is lost has to be built up again: the first steps of a fresh optimizer gain less."""
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.95)
    train(model, optimizer, 40)
    pruner = StructuredPruner(model, IMAGES[:1], "magnitude", 0.1)
    pruned = pruner.prune()
    assert pruner.plan is not None
    fresh_model = copy.deepcopy(pruned)
    migrate_optimizer(optimizer, pruner.plan, pruned)
    went_on = train(pruned, optimizer, 12)
    fresh = train(fresh_model, torch.optim.SGD(fresh_model.parameters(), lr=0.02, momentum=0.95), 12)
    assert went_on[0] == pytest.approx(fresh[0])  # the same model, before any step
    assert sum(went_on[1:6]) < sum(fresh[1:6])


@pytest.mark.parametrize("inplace", [False, True])
def test_one_optimizer_through_all_steps_of_an_iterative_prune(inplace: bool) -> None:
    model = build()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    train(model, optimizer)
    counts = []

    def tune(step: PruningStep) -> None:
        migrate_optimizer(optimizer, step.cut)
        assert {id(p) for p in held(optimizer)} == {id(p) for p in step.model.parameters()}
        train(step.model, optimizer, 2)
        scheduler.step()
        counts.append(int(next(iter(optimizer.state.values()))["step"]))

    StructuredPruner(model, IMAGES[:1], pruning_ratio=0.5, iterative_steps=3, inplace=inplace).prune(tune)
    assert counts == [5, 7, 9]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 / 8)


def test_groups_keep_their_settings_and_parameters_of_dropped_blocks_leave() -> None:
    model = build()
    flat = [p for p in model.parameters() if p.dim() == 1]
    deep = [p for p in model.parameters() if p.dim() > 1]
    optimizer = torch.optim.AdamW([{"params": flat, "weight_decay": 0.0}, {"params": deep, "lr": 0.5}], lr=0.1)
    train(model, optimizer)
    pruner = StructuredPruner(model, IMAGES[:1], drop_layers=["block1"], pruning_ratio=0.25)
    pruned = pruner.prune()
    assert pruner.plan is not None
    migrate_optimizer(optimizer, pruner.plan)
    first, second = optimizer.param_groups
    assert (first["weight_decay"], first["lr"], second["lr"]) == (0.0, 0.1, 0.5)
    assert {id(p) for p in first["params"]} == {id(p) for p in pruned.parameters() if p.dim() == 1}
    assert {id(p) for p in second["params"]} == {id(p) for p in pruned.parameters() if p.dim() > 1}
    assert len(optimizer.state) == len(list(pruned.parameters()))


def test_an_average_of_the_weights_follows() -> None:
    """`AveragedModel` keeps its own copy of the model: the plan cuts it as well."""
    model = build()
    average = AveragedModel(model)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    for _ in range(2):
        train(model, optimizer, 1)
        average.update_parameters(model)
    pruner = StructuredPruner(model, IMAGES[:1])
    pruned = pruner.prune()
    assert pruner.plan is not None
    masked = pruner.plan
    before = {name: value.clone() for name, value in average.module.state_dict().items()}
    slice_model(average.module, masked)
    for name, value in average.module.state_dict().items():
        old = before[name]
        for cut in masked.cuts:
            if cut.parameter == name:
                old = old.index_select(cut.dim, torch.tensor(cut.kept))
        assert torch.equal(value, old), name
    average.update_parameters(pruned)  # shapes fit


def test_of_several_copies_the_one_that_is_named() -> None:
    model = build()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    train(model, optimizer)
    pruner = StructuredPruner(model, IMAGES[:1])
    first, second = pruner.prune(), pruner.prune()
    assert pruner.plan is not None
    other = copy.deepcopy(optimizer.state_dict())
    migrate_optimizer(optimizer, pruner.plan, first)
    assert {id(p) for p in held(optimizer)} == {id(p) for p in first.parameters()}
    again = OPTIMIZERS["sgd"](model.parameters())
    again.load_state_dict(other)
    assert {id(p) for p in held(migrate_optimizer(again, pruner.plan, second))} == {id(p) for p in second.parameters()}


def test_what_does_not_fit_is_refused_and_nothing_changes() -> None:
    model, stranger = build(), build(1)
    pruner = StructuredPruner(model, IMAGES[:1])
    pruned = pruner.prune()
    assert pruner.plan is not None
    mine, other = OPTIMIZERS["sgd"](model.parameters()), OPTIMIZERS["sgd"](stranger.parameters())
    for optimizer, plan in ((other, pruner.plan), (mine, Plan())):
        before = [id(p) for p in held(optimizer)]
        with pytest.raises(InputError, match=r"parameter 0 of group 0, of shape \(8, 1, 3, 3\)"):
            migrate_optimizer(optimizer, plan)
        assert [id(p) for p in held(optimizer)] == before
    wrong: Any = model
    with pytest.raises(InputError, match=r"give a torch\.optim\.Optimizer"):
        migrate_optimizer(wrong, pruner.plan)
    with pytest.raises(InputError, match="give the Plan"):
        migrate_optimizer(mine, wrong)
    factored = torch.optim.Adafactor(model.parameters())
    train(model, factored)
    with pytest.raises(InputError, match="cannot follow a cut"):
        migrate_optimizer(factored, pruner.plan)
    assert {id(p) for p in held(factored)} == {id(p) for p in model.parameters()}
    plan = pruner.plan
    del pruned, pruner
    gc.collect()
    with pytest.raises(InputError, match="the pruned model is gone"):
        migrate_optimizer(mine, plan)
