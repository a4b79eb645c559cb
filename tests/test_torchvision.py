"""Eighteen of torchvision's networks: pruned, equal to the masked original, trainable and exportable.

Weights are random, and so is everything a fresh network has at 0 or 1 (statistics, norms, biases, heads), which would
hide a wrong cut. Inputs are the smallest the networks accept.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from cleanai import StructuredPruner, verify_pruning
from cleanai.plan import Plan

TOLERANCE = 1e-9
SETTINGS: dict[str, dict[str, Any]] = {
    "local": {"pruning_ratio": 0.3, "global_pruning": False},
    "global": {"pruning_ratio": 0.5, "global_pruning": True},
}


@dataclasses.dataclass(frozen=True)
class Zoo:
    """A network of torchvision: what it is made with, the input size, and the share of its channels that can go."""

    size: int
    share: float
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    plain: bool = True
    """No statistics over channels (LayerNorm): zeroing the dropped slices is then an exact reference."""


ZOO = {
    "resnet18": Zoo(64, 1.0),
    "resnet50": Zoo(64, 1.0),
    "resnext50_32x4d": Zoo(64, 1.0),
    "densenet121": Zoo(64, 1.0),
    "googlenet": Zoo(64, 1.0, {"init_weights": False}),
    "inception_v3": Zoo(299, 1.0, {"init_weights": False}),  # the auxiliary head runs at no smaller size
    "mobilenet_v2": Zoo(64, 1.0),
    "mobilenet_v3_large": Zoo(64, 1.0),
    "efficientnet_b0": Zoo(64, 1.0),
    "mnasnet1_0": Zoo(64, 1.0),
    "regnet_y_400mf": Zoo(64, 1.0),
    "shufflenet_v2_x1_0": Zoo(64, 0.75),  # its third stage splits and shuffles in ways that have no common step
    "squeezenet1_1": Zoo(64, 1.0),
    "vgg11_bn": Zoo(32, 1.0),
    "alexnet": Zoo(63, 1.0),
    "convnext_tiny": Zoo(64, 1.0, plain=False),
    "vit_b_32": Zoo(64, 1.0, {"image_size": 64}, plain=False),
    "swin_t": Zoo(64, 0.4, plain=False),  # the stream and the attention stay: see the last test
}


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random values wherever a fresh network has constants, weights of any scale kept otherwise."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if float(parameter.min()) == float(parameter.max()):
                fan_in = max(1, parameter[0].numel())
                draw = torch.randn(parameter.shape, generator=generator) * fan_in**-0.5
                parameter.copy_(draw if parameter.dim() > 1 else 0.3 * draw + 0.7 * float(parameter.max() > 0))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model


def make_network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=10, **ZOO[name].options)
    for module in model.modules():
        if isinstance(module, nn.Dropout | StochasticDepth):
            module.p = 0.0  # so that training mode computes the same thing twice
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    return randomise(model).eval()


class Case:
    """A network, and what pruning makes of it in each setting; made when asked for."""

    def __init__(self, name: str) -> None:
        self.name, self.zoo = name, ZOO[name]
        self.model = make_network(name)
        self._runs: dict[str, StructuredPruner] = {}

    def inputs(self, batch: int) -> Tensor:
        generator = torch.Generator().manual_seed(batch)
        return torch.randn(batch, 3, self.zoo.size, self.zoo.size, generator=generator)

    def pruner(self, setting: str) -> StructuredPruner:
        if setting not in self._runs:
            pruner = StructuredPruner(self.model, self.inputs(1), "l2", verify=False, **SETTINGS[setting])
            pruner.prune()
            self._runs[setting] = pruner
        return self._runs[setting]


@pytest.fixture(scope="module", params=list(ZOO))
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def plan_of(pruner: StructuredPruner) -> Plan:
    assert pruner.plan is not None
    return pruner.plan


def pruned_of(pruner: StructuredPruner) -> Any:
    assert pruner.pruned is not None
    return pruner.pruned


def zero_dropped(model: nn.Module, plan: Plan) -> nn.Module:
    """A float64 copy with every dropped slice at zero: made from the plan alone."""
    masked = copy.deepcopy(model).double()
    tensors = masked.state_dict(keep_vars=True)
    with torch.no_grad():
        for cut in plan.cuts:
            tensors[cut.parameter].index_fill_(cut.dim, torch.tensor(cut.dropped), 0.0)
    return masked


def list_outputs(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else [part for part in output if part is not None]


def assert_equal_outputs(ours: Any, theirs: Any, tolerance: float) -> None:
    ours, theirs = list_outputs(ours), list_outputs(theirs)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert float(b.abs().max()) > 1e-6, "the outputs are all zero: nothing was compared"
        assert float((a - b).abs().max() / b.abs().max()) <= tolerance


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_pruned_network_equals_the_masked_original(case: Case, setting: str) -> None:
    pruner = case.pruner(setting)
    proof = verify_pruning(case.model, pruned_of(pruner), plan_of(pruner), case.inputs(2))
    assert proof.passed and proof.max_relative_error <= TOLERANCE
    assert proof.dtype == "float64"
    reached = plan_of(pruner).dropped_units / plan_of(pruner).units
    assert reached == pytest.approx(SETTINGS[setting]["pruning_ratio"], abs=0.03)


@pytest.mark.parametrize("setting", SETTINGS)
def test_zeroing_the_dropped_slices_gives_the_same_outputs(case: Case, setting: str) -> None:
    if not case.zoo.plain:
        pytest.skip("LayerNorm runs over channels: zeros would count in its mean")
    pruner = case.pruner(setting)
    masked, pruned = zero_dropped(case.model, plan_of(pruner)), copy.deepcopy(pruned_of(pruner)).double()
    x = case.inputs(2).double()
    with torch.no_grad():
        assert_equal_outputs(pruned(x), masked(x), TOLERANCE)
        masked.train()
        pruned.train()
        assert_equal_outputs(pruned(x), masked(x), TOLERANCE)  # the outputs of auxiliary heads too


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_pruned_network_runs_forward_and_backward(case: Case, setting: str) -> None:
    pruned = copy.deepcopy(pruned_of(case.pruner(setting)))
    with torch.no_grad():
        one, two = pruned(case.inputs(1)), pruned(case.inputs(2))
    assert one.shape == (1, 10) and two.shape == (2, 10)
    assert one.isfinite().all() and two.isfinite().all()
    pruned.train()
    torch.stack([part.square().sum() for part in list_outputs(pruned(case.inputs(2)))]).sum().backward()
    for name, parameter in pruned.named_parameters():
        assert parameter.grad is not None and parameter.grad.shape == parameter.shape, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("setting", SETTINGS)
def test_sizes_and_memory_are_those_of_a_network_built_small(case: Case, setting: str) -> None:
    pruned = pruned_of(case.pruner(setting))
    for name, module in pruned.named_modules():
        if isinstance(module, nn.Conv2d):
            sizes = (module.out_channels, module.in_channels // module.groups)
            assert sizes == tuple(module.weight.shape[:2]), name
            assert module.in_channels % module.groups == 0 and module.out_channels % module.groups == 0, name
        elif isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == tuple(module.weight.shape), name
        elif isinstance(module, nn.BatchNorm2d):
            tensors = (module.weight, module.bias, module.running_mean, module.running_var)
            assert {tuple(tensor.shape) for tensor in tensors} == {(module.num_features,)}, name
        elif isinstance(module, nn.LayerNorm):
            assert module.normalized_shape == tuple(module.weight.shape), name
        elif isinstance(module, nn.MultiheadAttention):
            assert module.in_proj_weight.shape[0] == 3 * module.num_heads * module.head_dim, name
            assert module.embed_dim == module.in_proj_weight.shape[1] == module.out_proj.weight.shape[0], name
    for name, parameter in pruned.named_parameters():
        assert parameter.is_contiguous() and parameter.requires_grad and parameter.is_leaf, name
        assert parameter.untyped_storage().nbytes() == parameter.numel() * parameter.element_size(), name


def test_the_pruned_network_exports(case: Case) -> None:
    pruned = copy.deepcopy(pruned_of(case.pruner("global"))).eval()
    x = case.inputs(2)
    with torch.no_grad():
        exported = torch.export.export(pruned, (x,)).module()
        assert_equal_outputs(exported(x), pruned(x), 1e-5)


def prunable_share(pruner: StructuredPruner) -> float:
    """The share of the output channels of convolutions and linear layers, the classifiers' left out, that can go."""
    outputs = {
        layer for frozen in pruner.frozen if frozen.reason == "the output of the model" for layer in frozen.layers
    }
    layers = {
        name: module
        for name, module in pruner.model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and name not in outputs
    }
    total = sum(module.weight.shape[0] for module in layers.values())
    free = sum(
        len(member.positions)
        for group in pruner.groups
        if group.bundles > 1
        for member in group.members
        if member.layer in layers and member.parameter.endswith(".weight") and member.dim == 0
    )
    return free / total


def test_no_more_is_frozen_than_must_be(case: Case) -> None:
    pruner = case.pruner("local")
    assert prunable_share(pruner) >= case.zoo.share
    assert all(frozen.reason and frozen.layers for frozen in pruner.frozen)


def test_swin_prunes_its_stream_and_its_heads_alike() -> None:
    """torchvision's attention computes ``C // num_heads`` in its forward: both lose the same share, or none."""
    case = Case("swin_t")
    pruner = case.pruner("local")
    groups = {group.name: group for group in pruner.groups}
    # 96 channels of the stream, three heads in each of two blocks.
    assert sorted(len(block) for block in groups["features.0.0"].blocks) == [3, 3, 96]
    pruned: Any = pruner.prune()
    attention = pruned.features[1][0].attn
    assert attention.num_heads == 2 and attention.qkv.weight.shape == (3 * 64, 64)
    table = [frozen for frozen in pruner.frozen if "features.1.0.attn" in frozen.layers]
    assert any("picks from it by position" in frozen.reason for frozen in table)  # the relative positions
