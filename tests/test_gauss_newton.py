"""Gauss-Newton on a block: the least-squares solution where the block is linear, and never a step for the worse."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cleanai.gauss_newton import NoDerivativeError, Sample, _Curvature, measure_error, refine_block


def make_samples(block: nn.Module, teacher: Any, count: int = 6, noise: float = 0.0, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    xs = [torch.randn(32, 6, generator=generator, dtype=torch.float64) for _ in range(count)]
    with torch.no_grad():
        return [
            Sample(((x,), {}), (t := teacher(x)) + noise * torch.randn(t.shape, generator=generator).double())
            for x in xs
        ]


def linear_block(seed: int) -> Any:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 4)).double()


def names_of(block: nn.Module) -> list[str]:
    return [name for name, _ in block.named_parameters()]


def snapshot(block: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in block.state_dict().values()]


def test_the_error_is_the_mean_square_over_all_numbers() -> None:
    block = nn.Identity()
    samples = [
        Sample(((torch.ones(2, 3),), {}), torch.zeros(2, 3)),
        Sample(((torch.ones(1, 3),), {}), torch.ones(1, 3)),
    ]
    assert measure_error(block, samples) == pytest.approx(6 / 9)


def test_a_linear_block_comes_to_the_least_squares_solution() -> None:
    block, teacher = linear_block(0), linear_block(1)
    samples = make_samples(block, teacher, noise=0.5)
    before = measure_error(block, samples)
    reported = refine_block(block, names_of(block), samples, samples, steps=4, iterations=20, damping=1e-6)
    x = torch.cat([each.call[0][0] for each in samples])
    joined = torch.cat([x, torch.ones(len(x), 1)], 1)
    solution = torch.linalg.lstsq(joined, torch.cat([each.target for each in samples])).solution.T
    assert torch.allclose(block[0].weight, solution[:, :-1], atol=1e-3)
    assert torch.allclose(block[0].bias, solution[:, -1], atol=1e-3)
    assert reported[0] == pytest.approx(before) and reported[1] == pytest.approx(measure_error(block, samples))


def test_damping_keeps_the_values_near_where_they_were() -> None:
    moves = []
    for damping in (1e-6, 1.0, 1e4):
        block = linear_block(0)
        before = block[0].weight.detach().clone()
        samples = make_samples(block, linear_block(1))
        refine_block(block, names_of(block), samples, samples, steps=1, iterations=20, damping=damping)
        moves.append(float((block[0].weight - before).detach().norm()))
    assert moves[0] > moves[1] > moves[2] and moves[2] < 0.01 * moves[0]


class Block(nn.Module):
    """A residual block that writes to its input, with a norm; deep enough that the problem is not linear."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.up, self.norm, self.down = nn.Linear(6, width), nn.BatchNorm1d(width), nn.Linear(width, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        kept = x.clone()
        return kept + self.down(self.act(self.norm(self.up(self.act(x))))), "aside"


@pytest.mark.parametrize("seed", range(5))
def test_the_error_on_batches_held_out_never_grows(seed: int) -> None:
    torch.manual_seed(seed)
    teacher, block = Block().double().eval(), Block().double().eval()
    samples = make_samples(block, lambda x: teacher(x.clone())[0], count=3, noise=0.3, seed=seed)
    before = measure_error(block, samples[2:])
    first, best, taken = refine_block(block, names_of(block), samples[:2], samples[2:])
    after = measure_error(block, samples[2:])
    assert first == pytest.approx(before) and after == pytest.approx(best) and after <= before
    assert taken > 0 and after < 0.9 * before


def test_where_nothing_can_be_gained_nothing_changes() -> None:
    block = linear_block(0)
    samples = make_samples(block, block)
    before = snapshot(block)
    assert refine_block(block, names_of(block), samples, samples)[2] == 0
    assert all(map(torch.equal, before, snapshot(block)))


def test_targets_that_are_no_numbers_change_nothing() -> None:
    block = linear_block(0)
    samples = make_samples(block, linear_block(1))
    broken = [*samples, Sample(samples[0].call, samples[0].target * float("nan"))]
    before = snapshot(block)
    refine_block(block, names_of(block), broken, samples)
    refine_block(block, names_of(block), samples, broken)
    assert all(map(torch.equal, before, snapshot(block)))


class _NoForwardMode(torch.autograd.Function):
    @staticmethod
    def forward(x: Any) -> Any:
        return x * 2

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * 2


class _OldStyle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * 2


class _WithoutAny(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x * 2


class Custom(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.first, self.second, self.function = nn.Linear(6, 5), nn.Linear(5, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.function.apply(self.first(x)))


@pytest.mark.parametrize("function", [_NoForwardMode, _OldStyle, _WithoutAny])
def test_an_operation_without_a_derivative_is_named_and_nothing_changed(function: Any) -> None:
    torch.manual_seed(0)
    block, teacher = Custom(function).double(), Custom(function).double()
    samples = make_samples(block, teacher)
    before = snapshot(block)
    with pytest.raises(NoDerivativeError, match=r"\w"):
        refine_block(block, names_of(block), samples, samples)
    assert all(map(torch.equal, before, snapshot(block)))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in block.modules())


def test_attention_and_norms_have_the_derivatives_without_a_warning() -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.qkv, self.out = nn.LayerNorm(6), nn.Linear(6, 18), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(self.norm(x[None, None])).chunk(3, -1)
            return x + self.out(F.gelu(F.scaled_dot_product_attention(q, k, v)))[0, 0].softmax(-1)

    torch.manual_seed(0)
    block, teacher = Attend().double().eval(), Attend().double().eval()
    samples = make_samples(block, teacher)
    first, best, taken = refine_block(block, names_of(block), samples, samples)
    assert taken and best < 0.5 * first


def test_everything_but_the_values_is_as_before() -> None:
    torch.manual_seed(0)
    teacher, block = Block().double().eval(), Block().double().eval()
    for parameter in block.parameters():
        parameter.requires_grad_(False)
    block.up.weight.requires_grad_(True)
    block.up.weight.grad = torch.ones_like(block.up.weight)
    block.act.training = True
    block.up.register_forward_hook(lambda *_: None)
    samples = make_samples(block, lambda x: teacher(x.clone())[0])
    inputs = [each.call[0][0].clone() for each in samples]
    objects = dict(block.named_parameters())
    buffers = {name: value.clone() for name, value in block.named_buffers()}
    random = torch.get_rng_state()
    assert refine_block(block, names_of(block), samples, samples)[2] > 0
    assert torch.equal(random, torch.get_rng_state())
    assert all(objects[name] is value for name, value in block.named_parameters())
    assert [name for name, value in block.named_parameters() if value.requires_grad] == ["up.weight"]
    assert block.up.weight.grad is not None and bool((block.up.weight.grad == 1).all()) and block.up.bias.grad is None
    assert all(torch.equal(buffers[name], value) for name, value in block.named_buffers())
    assert block.act.training and not block.norm.training
    assert [len(m._forward_hooks) for m in block.modules()] == [0, 0, 1, 0, 0]
    assert all(torch.equal(x, each.call[0][0]) for x, each in zip(inputs, samples, strict=True))


def test_only_the_parameters_that_are_named_move() -> None:
    torch.manual_seed(0)
    teacher, block = Block().double().eval(), Block().double().eval()
    samples = make_samples(block, lambda x: teacher(x.clone())[0])
    before = copy.deepcopy(block)
    assert refine_block(block, ["down.weight"], samples, samples)[2] > 0
    changed = [
        name
        for (name, old), new in zip(before.named_parameters(), block.parameters(), strict=True)
        if not torch.equal(old, new)
    ]
    assert changed == ["down.weight"]


class Mixed(nn.Module):
    """Convolutions, grouped and transposed, in place behind each other, and parameters of no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, bias=False), nn.Conv2d(4, 6, 1, groups=2)
        self.third, self.scale = nn.ConvTranspose2d(6, 2, 2), nn.Parameter(torch.ones(2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.third(self.second(self.first(x).relu_()).relu_())


def test_the_preconditioner_and_its_inverse_undo_each_other() -> None:
    torch.manual_seed(0)
    block = Mixed().double()
    samples = [Sample(((torch.randn(3, 2, 6, 6).double(),), {}), torch.randn(3, 2, 5, 5).double())]
    values = {name: value.detach() for name, value in block.named_parameters()}
    curvature = _Curvature(block, values, samples, samples[0].target.numel())
    vector = {name: torch.randn_like(value) for name, value in values.items()}
    for found in (curvature.solve(curvature.apply(vector)), curvature.apply(curvature.solve(vector))):
        assert found.keys() == vector.keys()
        assert all(torch.allclose(found[name], value, atol=1e-6) for name, value in vector.items())
    assert all(float((value * curvature.apply(vector)[name]).sum()) > 0 for name, value in vector.items())


def test_what_writes_in_place_behind_a_layer_does_not_hide_its_slopes() -> None:
    """The curvature of a layer before an in-place ReLU is that of the same layer before a plain one."""
    torch.manual_seed(0)
    factors = []
    for inplace in (True, False):
        torch.manual_seed(1)
        block = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace), nn.Linear(5, 4)).double()
        samples = make_samples(block, linear_block(1))
        values = {name: value.detach() for name, value in block.named_parameters()}
        factors.append([(f.inputs, f.outputs) for f in _Curvature(block, values, samples, 1)._factors])
    assert len(factors[0]) == 2
    for one, other in zip(*factors, strict=True):
        assert all(map(torch.allclose, one, other))
