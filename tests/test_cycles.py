"""A thousand prunes, proofs and rollbacks of one net in one process: nothing is left over, neither memory nor hooks.

The net is the smallest that can be cut, two linear layers, so that a thousand cycles take less than a minute.
"""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cleanai import StructuredPruner, history_of, isolation, migrate_optimizer, optimizers, rollback
from cleanai.evaluate import measure_model

CYCLES, WARM, TRACED = 1000, 100, 40
pytestmark = pytest.mark.timeout(900)  # three quarters of a minute on a quiet core


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring takes half a second by itself."""
    measured = measure_model(nn.Linear(1, 1), torch.zeros(1, 1))
    monkeypatch.setattr("cleanai.pruner.measure_model", lambda *args, **options: measured)


def take_stock() -> dict[str, int]:
    """What there is in this process: live objects and, where the system tells it, resident bytes."""
    gc.collect()
    objects = gc.get_objects()
    status = Path("/proc/self/statm")
    return {
        "tensors": sum(issubclass(type(each), Tensor) for each in objects),
        "modules": sum(issubclass(type(each), nn.Module) for each in objects),
        "objects": len(objects),
        "resident": int(status.read_text().split()[1]) * 4096 if status.exists() else 0,
        "heirs": len(optimizers._heirs),
    }


def train_a_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()


def go_round(net: nn.Sequential, x: Tensor) -> None:
    """Trained, pruned, proven, trained on with the same optimizer, and taken back; a rate of 0 keeps the weights."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9)
    train_a_step(net, optimizer, x)
    pruner = StructuredPruner(net, x, pruning_ratio=0.5, inplace=True, keep_removed=True)
    pruner.prune()
    assert pruner.verification is not None and pruner.verification.passed and pruner.plan is not None
    weight: Any = net[0].weight
    assert weight.shape == (2, 3) and len(history_of(net)) == 1
    migrate_optimizer(optimizer, pruner.plan, net)
    train_a_step(net, optimizer, x)
    assert optimizer.state[weight]["momentum_buffer"].shape == (2, 3)
    rollback(net)
    net.zero_grad()
    assert len(history_of(net)) == 0


def trace_bytes(net: nn.Sequential, x: Tensor) -> int:
    """By how many bytes Python's memory grows in the last cycles; tracing makes them four times as slow."""
    tracemalloc.start(1)
    try:
        for _ in range(TRACED // 2):
            go_round(net, x)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(TRACED // 2):
            go_round(net, x)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def test_a_thousand_cycles_leave_nothing_over() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.randn(2, 3)
    before = net(x).detach().clone()
    attributes = [sorted(module.__dict__) for module in net.modules()]
    for _ in range(WARM):
        go_round(net, x)
    first = take_stock()
    for _ in range(CYCLES - WARM - TRACED):
        go_round(net, x)
    last = take_stock()
    traced = trace_bytes(net, x)
    assert torch.equal(net(x), before)
    assert attributes == [sorted(module.__dict__) for module in net.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert not isolation._transactions
    more = {name: last[name] - first[name] for name in first}
    assert more["tensors"] <= 0 and more["modules"] <= 0 and more["heirs"] <= 0, more
    assert more["objects"] < CYCLES / 10, more  # less than one object in nine cycles
    assert traced < 64 << 10  # bytes; it swings by half of that from cycle to cycle and does not grow
    assert more["resident"] < 32 << 20, more  # the allocator's own
