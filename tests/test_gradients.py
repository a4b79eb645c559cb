"""Gradient statistics: what autograd gives on the model itself, with the model left as it was."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from nets import CASES
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from cleanai import GradientStatistics, InputError, StructuredPruner, collect_gradients


class Net(nn.Module):
    """A convolution, BatchNorm, dropout and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.dropout(F.relu(self.norm(self.conv(x))).mean((2, 3)), 0.5, self.training))


def make_net() -> Any:
    torch.manual_seed(0)
    return Net()


def batches(count: int = 3, size: int = 5) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 3, 6, 6, generator=generator), torch.randint(0, 4, (size,), generator=generator))
        for _ in range(count)
    ]


def collect(model: nn.Module, loader: Any, *args: Any, **options: Any) -> GradientStatistics:
    return collect_gradients(model, loader, *args, progress=False, **options)


def assert_same(first: GradientStatistics, second: GradientStatistics, rtol: float = 1e-9) -> None:
    for table in ("squares", "absolutes", "curvatures"):
        ours, theirs = getattr(first, table), getattr(second, table)
        assert ours.keys() == theirs.keys()
        for key in ours:
            torch.testing.assert_close(ours[key], theirs[key], rtol=rtol, atol=1e-12)


def square(model: nn.Module, batch: Any) -> Tensor:
    inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
    return model(inputs).square().mean()


# ------------------------------------------------------------------------------------------------------ the numbers


def test_sums_are_those_of_autograd_on_the_model_itself() -> None:
    net = make_net().eval()
    found = collect(net, batches())
    expected: dict[Any, Any] = {}
    for x, y in batches():
        net.zero_grad()
        F.cross_entropy(net(x), y).backward()
        for name, parameter in net.named_parameters():
            product = (parameter.grad * parameter).detach().double()
            for dim in range(min(2, parameter.dim())):
                sums = product.movedim(dim, 0).reshape(product.shape[dim], -1).sum(1)
                both = expected.setdefault((name, dim), [0, 0])
                both[0], both[1] = both[0] + sums.square(), both[1] + sums.abs()
    assert found.squares.keys() == expected.keys() and not found.curvatures
    for key, (squares, absolutes) in expected.items():
        torch.testing.assert_close(found.squares[key], squares, rtol=1e-4, atol=1e-10)
        torch.testing.assert_close(found.absolutes[key], absolutes, rtol=1e-4, atol=1e-8)
        assert found.squares[key].dtype is torch.float64
    assert (found.batches, found.samples) == (3, 15)
    assert repr(found) == "GradientStatistics(6 parameters, 3 batches, 15 samples)"


def test_curvature_is_the_hessian_of_the_loss() -> None:
    """With few weights the whole Hessian can be written down."""
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    x, y = torch.randn(6, 2).double(), torch.randint(0, 2, (6,))
    found = collect(net, [(x, y)], curvature=True, probes=3000)

    def loss(weight: Tensor) -> Tensor:
        return F.cross_entropy(net[2](torch.tanh(F.linear(x, weight, net[0].bias))), y)

    hessian = torch.autograd.functional.hessian(loss, net[0].weight.detach())  # [3, 2, 3, 2]
    assert isinstance(hessian, Tensor)
    weight = net[0].weight.detach()
    rows = torch.stack([weight[u] @ hessian[u, :, u, :] @ weight[u] for u in range(3)])
    torch.testing.assert_close(found.curvatures["0.weight", 0], rows, rtol=0.15, atol=0.01)
    columns = torch.stack([weight[:, i] @ hessian[:, i, :, i] @ weight[:, i] for i in range(2)])
    torch.testing.assert_close(found.curvatures["0.weight", 1], columns, rtol=0.15, atol=0.01)


def test_the_seed_decides_the_signs() -> None:
    net = make_net()
    first, again, other = (collect(net, batches(1), curvature=True, seed=seed) for seed in (1, 1, 2))
    assert_same(first, again, rtol=0)
    assert not torch.equal(first.curvatures["conv.weight", 0], other.curvatures["conv.weight", 0])


def test_merging_two_passes_is_one_pass() -> None:
    net = make_net().double()
    data = [(x.double(), y) for x, y in batches(5)]
    merged = collect(net, data[:2]).merge(collect(net, data[2:]))
    assert_same(merged, collect(net, data))
    assert (merged.batches, merged.samples) == (5, 25)
    with pytest.raises(InputError, match="curvature=True, or both without"):
        merged.merge(collect(net, data, curvature=True))


def test_after_picks_what_a_cut_kept() -> None:
    found = collect(make_net(), batches(), curvature=True)
    kept = torch.tensor([0, 4])
    left = found.after({("conv.weight", 0): kept, ("fc.weight", 1): kept})
    for table in ("squares", "absolutes", "curvatures"):
        assert torch.equal(getattr(left, table)["conv.weight", 0], getattr(found, table)["conv.weight", 0][kept])
        assert torch.equal(getattr(left, table)["conv.weight", 1], getattr(found, table)["conv.weight", 1])
    assert left.batches == 3


def test_evaluation_mode_whatever_the_models_mode() -> None:
    assert_same(collect(make_net().train(), batches()), collect(make_net().eval(), batches()))


def test_frozen_parameters_are_looked_at_too() -> None:
    frozen = make_net()
    frozen.requires_grad_(False)
    assert_same(collect(frozen, batches(), curvature=True), collect(make_net(), batches(), curvature=True))
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_inside_no_grad_and_inference_mode() -> None:
    expected = collect(make_net(), batches())
    with torch.no_grad():
        assert_same(collect(make_net(), batches()), expected)
    net, data = make_net(), batches()
    with torch.inference_mode():
        assert_same(collect(net, data), expected)


def test_low_precision_weights_are_multiplied_in_double() -> None:
    net = make_net().to(torch.bfloat16)
    data = [(x.bfloat16(), y) for x, y in batches()]
    found = collect(net, data)
    assert all(values.dtype is torch.float64 and bool(values.isfinite().all()) for values in found.squares.values())


def test_a_tied_weight_has_the_gradient_of_both_uses() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    torch.manual_seed(0)
    net, x, y = Tied(), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    found = collect(net, [(x, y)])
    assert {name for name, _ in found.squares} == {"first.weight"}
    gradient = torch.autograd.grad(F.cross_entropy(net(x), y), net.first.weight)[0]
    torch.testing.assert_close(
        found.squares["first.weight", 0], (gradient * net.first.weight).sum(1).square().double(), check_dtype=False
    )


@pytest.mark.parametrize("name", ["attention_sdpa", "multihead_attention", "checkpointed", "lstm", "encoder_layer"])
def test_curvature_of_attention_and_recurrence(name: str) -> None:
    net = CASES[name].make()
    found = collect(
        net, [CASES[name].inputs(3)], lambda model, batch: _first(model(batch)).square().mean(), curvature=True
    )
    assert all(bool(values.isfinite().all()) for values in found.curvatures.values())
    assert sum(float(values.abs().sum()) for values in found.curvatures.values()) > 0


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else _first(output[0])


def test_reentrant_checkpoints_have_gradients_but_no_curvature() -> None:
    net = CASES["checkpointed_reentrant"].make()
    x = CASES["checkpointed_reentrant"].inputs(3)
    assert collect(net, [x], square).squares
    with pytest.raises(InputError, match="cannot be differentiated twice"):
        collect(net, [x], square, curvature=True)


# --------------------------------------------------------------------------------------------------------- the data


@pytest.mark.parametrize(
    "loader",
    [
        lambda data: [list(pair) for pair in data],
        lambda data: [{"x": x, "labels": y} for x, y in data],
        lambda data: DataLoader(TensorDataset(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])), 5),
        lambda data: (pair for pair in data),
    ],
    ids=["lists", "dicts", "DataLoader", "generator"],
)
def test_every_kind_of_loader_gives_the_same_gradients(loader: Any) -> None:
    assert_same(collect(make_net(), loader(batches())), collect(make_net(), batches()))


def test_a_loss_of_ones_own_needs_no_labels() -> None:
    data = [x for x, _ in batches()]
    found = collect(make_net(), data, square)
    assert_same(found, collect(make_net(), batches(), lambda model, batch: square(model, batch[0])))
    assert found.samples == 15


def test_named_and_several_outputs() -> None:
    class Named(Net):
        def forward(self, x: Tensor) -> Any:
            return {"hidden": x.mean((1, 2, 3)), "logits": super().forward(x)}

    class Pair(Net):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), None

    for kind in (Named, Pair):
        torch.manual_seed(0)
        assert_same(collect(kind(), batches()), collect(make_net(), batches()))


def test_at_most_num_batches_are_drawn() -> None:
    assert collect(make_net(), batches(5), None, 2).batches == 2


# ----------------------------------------------------------------------------------------------- nothing is left behind


@pytest.mark.parametrize("curvature", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_before(curvature: bool, fails: bool) -> None:
    net = make_net().train()
    net.norm.eval()
    net.conv.weight.requires_grad_(False)
    net.fc.weight.grad = kept = torch.ones(4, 6)
    parameters = dict(net.named_parameters())
    before = copy.deepcopy(net.state_dict())
    modes = [module.training for module in net.modules()]
    random = torch.get_rng_state()
    data = DataLoader(TensorDataset(torch.cat([x for x, _ in batches()]), torch.zeros(15).long()), 4, shuffle=True)

    def loader() -> Iterator[Any]:
        yield from data
        if fails:
            raise OSError("the disk is gone")

    if fails:
        with pytest.raises(OSError, match="the disk is gone"):
            collect(net, loader(), curvature=curvature)
    else:
        collect(net, loader(), curvature=curvature)
    assert all(parameters[name] is parameter for name, parameter in net.named_parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes
    assert net.fc.weight.grad is kept and bool((kept == 1).all())
    assert net.conv.weight.grad is None and not net.conv.weight.requires_grad
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("curvature", [False, True])
def test_memory_does_not_grow_with_the_batches(curvature: bool) -> None:
    net = make_net()
    seen: list[weakref.ref[Tensor]] = []
    net.conv.register_forward_hook(lambda module, args, output: seen.append(weakref.ref(output)))
    found = collect(net, batches(6), curvature=curvature)
    gc.collect()
    assert len(seen) == 6 and all(reference() is None for reference in seen)
    assert all(not values.requires_grad for values in found.squares.values())


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("data", "loss", "words"),
    [
        ([torch.randn(2, 3, 6, 6)], None, r"gradients need labels: give \(inputs, labels\) batches, or a loss_fn"),
        (
            [(torch.randn(2, 3, 6, 6), torch.zeros(3).long())],
            None,
            r"output of shape \(2, 4\) with labels of shape \(3,\)",
        ),
        ([(torch.randn(2, 3, 6, 6), torch.zeros(2))], None, "cross-entropy cannot compare"),
        (
            [(torch.randn(2, 5, 6, 6), torch.zeros(2).long())],
            None,
            "the loss of batch 0 of the loader cannot be computed",
        ),
        ([(torch.randn(2, 3, 6, 6) * float("nan"), torch.zeros(2).long())], None, "the loss is nan for batch 0"),
        (batches(), lambda model, batch: model(batch[0]), r"loss_fn gave a tensor of shape \(5, 4\) for batch 0"),
        (batches(), lambda model, batch: 3.0, "loss_fn gave float for batch 0; it must give a scalar tensor"),
        (batches(), lambda model, batch: torch.ones(()), "loss_fn of batch 0 does not depend on the parameters"),
        (batches(), lambda model, batch: model(batch[0]).sum().detach(), "does not depend on the parameters"),
        (batches(), lambda model, batch: model(batch[0]).sum() * float("inf"), "loss_fn is .* for batch 0"),
        ([], None, "the loader is empty: gradients need at least one batch"),
    ],
    ids=[
        "no labels",
        "counts",
        "float labels",
        "shape",
        "nan",
        "vector",
        "number",
        "constant",
        "detached",
        "inf",
        "empty",
    ],
)
def test_what_gives_no_gradient_is_refused(data: Any, loss: Any, words: str) -> None:
    net = make_net()
    with pytest.raises(InputError, match=words):
        collect(net, data, loss)
    assert net.training and net.conv.weight.grad is None


@pytest.mark.parametrize("probes", [0, -1, 1.5, True])
def test_probes_must_be_a_whole_number(probes: Any) -> None:
    with pytest.raises(InputError, match="probes is"):
        collect(make_net(), batches(), curvature=True, probes=probes)


def test_gradients_that_are_not_finite_name_the_parameter() -> None:
    net = make_net()
    loss = lambda model, batch: (model(batch[0]) * 0).abs().sqrt().sum()  # the slope of the root at 0
    with pytest.raises(InputError, match=r"the gradient of conv.weight holds NaN or infinite values for batch 0"):
        collect(net, batches(), loss)


# ------------------------------------------------------------------------------------------------------ in the pruner


@pytest.mark.parametrize("importance", ["taylor", "hessian"])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_pruner_scores_by_gradients(importance: str, steps: int) -> None:
    net = make_net()
    pruner = StructuredPruner(net, torch.randn(2, 3, 6, 6), importance, 0.5, iterative_steps=steps)
    statistics = pruner.collect_gradients(batches(), progress=False)
    assert bool(statistics.curvatures) is (importance == "hessian")
    pruned: Any = pruner.prune()
    assert pruned.conv.out_channels == 3
    assert pruner.verification is not None and pruner.verification.passed


class Blocks(nn.Module):
    """Three residual blocks; the middle one changes next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(3, 6), nn.Linear(6, 4)
        self.blocks = nn.ModuleList(Residual() for _ in range(3))
        with torch.no_grad():
            for parameter in self.blocks[1].parameters():
                parameter.mul_(0.01)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.relu(self.up(x)))


@pytest.mark.parametrize("importance", ["taylor", "hessian"])
def test_blocks_are_judged_by_gradients_too(importance: str) -> None:
    net: Any = Blocks()
    data = [(torch.randn(20, 3), torch.randint(0, 4, (20,))) for _ in range(2)]
    pruner = StructuredPruner(
        net, torch.randn(2, 3), importance, 0.25, depth_pruning_ratio=0.34, iterative_steps=2, inplace=True
    )
    pruner.collect_gradients(data, progress=False)
    pruned: Any = pruner.prune()
    assert pruner.plan is not None and pruner.plan.dropped_blocks == ("blocks.1",)
    assert pruned.blocks[0].up.out_features == 6
    pruner.pruning_ratio = 0.2
    assert all(scores is not None for scores in pruner.score_groups().values())  # with what is left of the statistics


def test_gradients_of_another_model_are_refused() -> None:
    pruner = StructuredPruner(make_net(), torch.randn(2, 3, 6, 6), "taylor")
    pruner.collect_gradients(batches(), progress=False)
    assert pruner.gradients is not None
    pruner.gradients = pruner.gradients.after({("conv.weight", 0): torch.arange(4)})
    with pytest.raises(InputError, match=r"conv.weight are for 4 indices along dimension 0; it has 6 now"):
        pruner.score_groups()
