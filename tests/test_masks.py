"""A plan tried out by masks gives what the sliced model gives, and leaves the model as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from cleanai import InputError, Plan, PlanError, StructuredPruner
from cleanai.models import cifar_vit, digits_resnet
from cleanai.plan import TensorCut


def list_models() -> dict[str, tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2)
    return {
        "resnet": (digits_resnet(4), torch.randn(3, 1, 8, 8)),
        "vit": (cifar_vit(dim=16, depth=3, num_heads=2), torch.randn(2, 3, 32, 32)),
        "encoder": (nn.Sequential(encoder), torch.randn(2, 5, 16)),  # torch would use a fused kernel here
        "shufflenet": (torchvision.models.shufflenet_v2_x0_5(), torch.randn(2, 3, 64, 64)),
    }


@pytest.mark.parametrize("name", list_models())
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_masked_is_sliced(name: str, mode: Any) -> None:
    model, inputs = list_models()[name]
    model, inputs = model.double().train(), inputs.double()
    model.requires_grad_(False)  # where nothing is differentiable, torch takes its fused kernels
    nn.init.normal_(next(p for p in reversed(list(model.parameters())) if p.dim() > 1))
    depth = 0.34 if name in ("resnet", "vit") else 0.0
    pruner = StructuredPruner(model, inputs, "magnitude", 0.4, depth_pruning_ratio=depth)
    plan = pruner.make_plan()
    sliced = pruner.prune().eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    held = {key: id(value) for key, value in model.state_dict(keep_vars=True).items()}
    with mode():
        expected = sliced(inputs)
        with plan.apply_masks(model) as masked:
            found = [masked(inputs) for _ in range(2)]
    for each in found:
        assert not each.requires_grad
        assert torch.allclose(each, expected, rtol=1e-9, atol=1e-12 * float(expected.abs().max()))
    assert model.training and "forward" not in model.__dict__
    assert held == {key: id(value) for key, value in model.state_dict(keep_vars=True).items()}
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_plans_can_be_tried_in_turn_and_an_error_inside_leaves_no_trace() -> None:
    model, inputs = list_models()["resnet"]
    model.eval()
    whole = model(inputs)
    outputs = []
    for ratio in (0.2, 0.5):
        with StructuredPruner(model, inputs, "magnitude", ratio).make_plan().apply_masks(model) as masked:
            outputs.append(masked(inputs))
    assert not torch.allclose(outputs[0], outputs[1])
    with pytest.raises(ZeroDivisionError):
        with StructuredPruner(model, inputs).make_plan().apply_masks(model):
            1 / 0  # noqa: B018
    assert torch.equal(model(inputs), whole)


def test_what_cannot_be_masked_is_refused_before_anything_changes() -> None:
    model, _ = list_models()["resnet"]
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(PlanError, match=r"the plan cuts nothing\.weight"):
        Plan(cuts=(TensorCut("nothing.weight", 0, 4, (1,)),)).apply_masks(model).__enter__()
    with pytest.raises(InputError, match="that can be called"):
        Plan().apply_masks(nn.ModuleDict({"part": model})).__enter__()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
