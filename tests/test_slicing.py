"""A plan carried out: everything that has a size follows, everything else stays, and an error changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nets import CASES, PlainCnn, randomise
from oracle import assert_equals_masked, assert_runs
from torch import Tensor, nn
from torch.nn import functional as F

from cleanai import InputError, PlanError, RandomImportance, StructuredPruner, slice_model
from cleanai.plan import AttributeChange, Plan, TensorCut


def plan_for(model: nn.Module, inputs: Any, ratio: float = 0.5, **options: Any) -> Plan:
    """A plan with random scores."""
    return StructuredPruner(model, inputs, RandomImportance(), ratio, **options).make_plan()


def halved(name: str, **options: Any) -> tuple[Any, Any, Plan]:
    """A network of `nets.py`, its half-sized copy, and the plan between them."""
    model = CASES[name].make()
    plan = plan_for(model, CASES[name].inputs(2), **options)
    return model, slice_model(copy.deepcopy(model), plan), plan


CONV1 = (
    *(TensorCut(f"conv1.{name}", 0, 8, (1, 5)) for name in ("weight", "bias")),
    *(TensorCut(f"bn1.{name}", 0, 8, (1, 5)) for name in ("weight", "bias", "running_mean", "running_var")),
    TensorCut("conv2.weight", 1, 8, (1, 5), "input"),
)
KEPT = [0, 2, 3, 4, 6, 7]


def test_kept_values_are_taken_and_the_same_model_is_returned() -> None:
    model = randomise(PlainCnn())
    before = copy.deepcopy(model.state_dict())
    assert slice_model(model, Plan(cuts=CONV1)) is model
    after = model.state_dict()
    for name in ("conv1.weight", "conv1.bias", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"):
        assert torch.equal(after[name], before[name][KEPT])
    assert torch.equal(after["conv2.weight"], before["conv2.weight"][:, KEPT])
    for name in ("conv2.bias", "fc.weight", "fc.bias", "bn1.num_batches_tracked"):
        assert torch.equal(after[name], before[name])


def test_untouched_tensors_are_the_same_objects_and_cut_ones_are_parameters_of_their_own_memory() -> None:
    model = randomise(PlainCnn())
    kept, old = model.fc.weight, model.conv1.weight
    slice_model(model, Plan(cuts=CONV1))
    assert model.fc.weight is kept
    assert type(model.conv1.weight) is nn.Parameter and model.conv1.weight.is_leaf
    assert model.conv1.weight.untyped_storage().nbytes() == model.conv1.weight.numel() * 4
    assert old.shape[0] == 8


# ------------------------------------------------------------------------------------------------------- metadata

METADATA: dict[str, dict[str, dict[str, Any]]] = {
    "plain_cnn": {
        "conv1": {"in_channels": 3, "out_channels": 4},
        "bn1": {"num_features": 4},
        "conv2": {"in_channels": 4, "out_channels": 6},
        "fc": {"in_features": 6, "out_features": 5},
    },
    "depthwise": {"depth": {"in_channels": 4, "out_channels": 4, "groups": 4}},
    "depth_multiplier": {"depth": {"in_channels": 2, "out_channels": 6, "groups": 2}},
    "grouped_transposed": {"up": {"in_channels": 6, "out_channels": 4, "groups": 2}},
    "transposed": {"up": {"in_channels": 4, "out_channels": 3, "groups": 1}},
    "layer_norm": {"norm": {"normalized_shape": (4,)}, "fc1": {"in_features": 4, "out_features": 6}},
    "layer_norm_plain": {"norm": {"normalized_shape": (4,)}},
    "rms_norm": {"norm": {"normalized_shape": (5,)}},
    "group_norm": {"norm2": {"num_channels": 4, "num_groups": 1}},
    "batch_norm_plain": {"bn": {"num_features": 4}},
    "instance_norm": {"norm": {"num_features": 4}},
    "prelu": {"1": {"num_parameters": 4}, "3": {"num_parameters": 1}},
    "embedding": {"words": {"embedding_dim": 4, "num_embeddings": 11}},
    "multihead_attention": {"attention": {"embed_dim": 4, "num_heads": 2, "head_dim": 2}},
    "attention_index": {"": {"num_heads": 2}, "qkv": {"out_features": 12, "in_features": 4}},
    "gqa_repeat": {"": {"num_heads": 2, "num_kv_heads": 1, "head_dim": 6}},
    "split_attribute": {"": {"split": [2, 4]}},
    "slice_attribute": {"": {"cut_at": 2}},
    "view_attribute": {"": {"features": 12}},
}


@pytest.mark.parametrize("name", METADATA)
def test_sizes_kept_in_attributes_follow(name: str) -> None:
    _, pruned, _ = halved(name)
    for path, attributes in METADATA[name].items():
        module = pruned.get_submodule(path)
        assert {key: getattr(module, key) for key in attributes} == attributes
        assert all(type(getattr(module, key)) is type(value) for key, value in attributes.items())


def test_a_bilinear_layer_follows() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.both, self.c = (
                nn.Linear(3, 6), nn.Linear(4, 8), nn.Bilinear(6, 8, 10), nn.Linear(10, 2),
            )  # fmt: skip

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.c(F.relu(self.both(self.a(x), self.b(y))))

    model, inputs = randomise(Net()), (torch.randn(2, 3), torch.randn(2, 4))
    pruner = StructuredPruner(model, inputs, RandomImportance(), 0.5)
    pruned: Any = pruner.prune()
    assert pruner.plan is not None
    assert_equals_masked(model, pruned, pruner.plan, inputs)
    assert tuple(pruned.both.weight.shape) == (
        pruned.both.out_features, pruned.both.in1_features, pruned.both.in2_features,
    )  # fmt: skip


def test_repr_shows_the_new_sizes() -> None:
    _, pruned, _ = halved("plain_cnn")
    assert "Conv2d(3, 4," in repr(pruned.conv1) and "BatchNorm2d(4," in repr(pruned.bn1)


# ------------------------------------------------------------------------------------------------- what must survive


def test_gradients_are_cut_with_their_parameters() -> None:
    model = CASES["plain_cnn"].make()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    model.conv2.bias.grad = None
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    slice_model(model, Plan(cuts=CONV1))
    assert torch.equal(model.conv1.weight.grad, grads["conv1.weight"][KEPT])
    assert torch.equal(model.conv2.weight.grad, grads["conv2.weight"][:, KEPT])
    assert torch.equal(model.fc.weight.grad, grads["fc.weight"])
    assert model.conv2.bias.grad is None


def test_requires_grad_dtype_and_mode_are_kept_one_by_one() -> None:
    model = CASES["plain_cnn"].make().train()
    model.bn1.eval()
    model.conv1.weight.requires_grad_(False)
    model.bn1.weight.data = model.bn1.weight.data.double()
    slice_model(model, Plan(cuts=CONV1))
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert not flags.pop("conv1.weight") and all(flags.values())
    assert model.bn1.weight.dtype == torch.float64 and model.bn1.bias.dtype == torch.float32
    assert model.training and model.conv1.training and not model.bn1.training


def test_the_memory_format_is_kept() -> None:
    model = PlainCnn().to(memory_format=torch.channels_last)
    assert model.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    slice_model(model, Plan(cuts=CONV1))
    assert model.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert slice_model(PlainCnn(), Plan(cuts=CONV1)).get_parameter("conv2.weight").is_contiguous()


def test_tied_tensors_stay_tied() -> None:
    _, pruned, _ = halved("tied_embedding")
    assert pruned.head.weight is pruned.embed.weight and pruned.head.weight.shape == (11, 4)
    assert (pruned.embed.embedding_dim, pruned.head.in_features) == (4, 4)
    _, pruned, _ = halved("tied_linears")
    assert pruned.fc1.weight is pruned.fc2.weight and pruned.fc1.weight.shape == (4, 4)
    assert pruned.fc1.out_features == pruned.fc2.out_features == 4


def test_buffers_and_plain_tensors_are_cut_and_stay_what_they_are() -> None:
    model, pruned, plan = halved("plain_tensors")
    kept = list(plan.kept("fc1.weight", 0))
    assert torch.equal(pruned.scale, model.scale[kept]) and torch.equal(pruned.shift, model.shift[kept])
    assert "scale" in vars(pruned) and "shift" in pruned._buffers
    assert type(pruned.scale) is Tensor


def test_non_persistent_buffers_stay_out_of_the_state_dict() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(3, 6), nn.Linear(6, 2)
            self.register_buffer("scale", torch.linspace(1, 2, 6), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(self.fc1(x) * self.scale)

    pruned = StructuredPruner(Net(), torch.randn(2, 3), pruning_ratio=0.5).prune()
    assert pruned.scale.shape == (3,) and "scale" not in pruned.state_dict()


def test_hooks_stay_and_fire() -> None:
    calls: list[int] = []
    model = CASES["hooked"].make()
    model.conv2.register_forward_hook(lambda *_: calls.append(1))
    plan = plan_for(model, CASES["hooked"].inputs(2))
    calls.clear()
    slice_model(model, plan)(CASES["hooked"].inputs(2))
    assert calls == [1] and len(model.conv1._forward_hooks) == 1


def test_parameter_hooks_and_gradient_accumulation_work_after_slicing() -> None:
    model = CASES["plain_cnn"].make()
    slice_model(model, Plan(cuts=CONV1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = model.conv1.weight.detach().clone()
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    assert not torch.equal(before, model.conv1.weight)


def test_a_recurrent_layer_is_never_left_half_cut() -> None:
    for name in ("lstm", "gru"):
        model, pruned, plan = halved(name)
        assert_runs(pruned, CASES[name].inputs(3))
        assert_equals_masked(model, pruned, plan, CASES[name].inputs(3))
        recurrent = pruned.get_submodule(name)
        assert all(a is b for a, b in zip(recurrent._flat_weights, recurrent.parameters(), strict=True))
        assert recurrent.weight_ih_l0.shape[1] == recurrent.input_size


def test_the_pruned_model_saves_loads_copies_and_exports(tmp_path: Any) -> None:
    model, pruned, plan = halved("multihead_attention")
    torch.save(pruned.state_dict(), tmp_path / "pruned.pt")
    fresh = slice_model(CASES["multihead_attention"].make(seed=7), Plan.from_json(plan.to_json()))
    fresh.load_state_dict(torch.load(tmp_path / "pruned.pt", weights_only=True))
    inputs = CASES["multihead_attention"].inputs(2)
    expected = pruned(inputs)
    assert torch.equal(fresh(inputs), expected)
    assert torch.equal(copy.deepcopy(pruned)(inputs), expected)
    exported = torch.export.export(pruned, (inputs,))
    assert torch.allclose(exported.module()(inputs), expected, atol=1e-6)
    assert not torch.equal(model(inputs), expected)


# ----------------------------------------------------------------------------------------------- checked, then done


def broken_plans() -> dict[str, tuple[Plan, str]]:
    """Plans that do not fit a `PlainCnn`, each with what the error says."""
    first = Plan(cuts=CONV1)

    def with_attribute(**values: Any) -> Plan:
        defaults: dict[str, Any] = {"module": "conv1", "attribute": "groups", "index": None, "old": 1, "new": 2}
        return Plan(cuts=CONV1, attributes=(AttributeChange(**{**defaults, **values}),))

    return {
        "another architecture": (Plan(cuts=(*CONV1, TensorCut("layer4.weight", 0, 8, (1,)))), "layer4.weight"),
        "another size": (Plan(cuts=(*CONV1, TensorCut("fc.weight", 1, 16, (1,)))), "expects 16 indices"),
        "no such dimension": (Plan(cuts=(*CONV1, TensorCut("fc.bias", 1, 5, (1,)))), "expects 5 indices"),
        "pruned already": (first, "was the model pruned since"),
        "no such module": (with_attribute(module="nowhere"), "no such module"),
        "another value": (with_attribute(old=4), "is 1, the plan expects 4"),
        "no such attribute": (with_attribute(attribute="nothing"), "is None, the plan expects 1"),
        "no such index": (with_attribute(attribute="stride", index=7), "the plan expects 1"),
    }


@pytest.mark.parametrize("what", broken_plans())
def test_a_plan_that_does_not_fit_is_an_error_before_anything_is_touched(what: str) -> None:
    plan, message = broken_plans()[what]
    model = randomise(PlainCnn())
    if what == "pruned already":
        slice_model(model, plan)
    values = copy.deepcopy(model.state_dict())
    objects = [id(tensor) for tensor in model.state_dict(keep_vars=True).values()]
    attributes = {path: dict(vars(module)) for path, module in model.named_modules()}
    with pytest.raises(PlanError, match=message):
        slice_model(model, plan)
    assert [id(tensor) for tensor in model.state_dict(keep_vars=True).values()] == objects
    assert all(torch.equal(tensor, values[name]) for name, tensor in model.state_dict().items())
    assert attributes == {path: dict(vars(module)) for path, module in model.named_modules()}


@pytest.mark.parametrize("where", ["update_sizes", "make_sliceable"])
def test_an_error_half_way_takes_everything_back(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from cleanai import slicing

    calls = []

    def raises(module: nn.Module) -> None:
        calls.append(module)
        if len(calls) == 2:
            raise MemoryError("planted")

    monkeypatch.setattr(slicing, where, raises)
    model = randomise(PlainCnn())
    model.conv1.weight.grad = torch.ones_like(model.conv1.weight)
    before = {name: (id(t), t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    with pytest.raises(MemoryError, match="planted"):
        slice_model(model, Plan(cuts=CONV1))
    after = model.state_dict(keep_vars=True)
    assert {name: id(t) for name, t in after.items()} == {name: i for name, (i, _) in before.items()}
    assert all(torch.equal(after[name], value) for name, (_, value) in before.items())
    assert model.conv1.weight.grad is not None and model.conv1.out_channels == 8


def test_a_failed_prune_in_place_leaves_an_attention_layer_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from cleanai import VerificationError, pruner

    def wrong(*_: Any, **__: Any) -> Any:
        raise VerificationError("planted")

    monkeypatch.setattr(pruner, "compare_with_reference", wrong)
    model = CASES["multihead_attention"].make()
    with pytest.raises(VerificationError, match="planted"):
        StructuredPruner(model, CASES["multihead_attention"].inputs(2), inplace=True).prune()
    assert type(model.attention) is nn.MultiheadAttention
    assert "attention_scale" not in vars(model.attention) and model.attention.embed_dim == 8


def test_an_empty_plan_changes_nothing() -> None:
    model = PlainCnn()
    objects = [id(tensor) for tensor in model.state_dict(keep_vars=True).values()]
    slice_model(model, Plan())
    slice_model(model, Plan(cuts=(TensorCut("conv1.weight", 0, 8, ()),)))
    assert [id(tensor) for tensor in model.state_dict(keep_vars=True).values()] == objects


def test_the_original_and_its_optimizer_stay_usable_without_inplace() -> None:
    model = CASES["plain_cnn"].make()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    parameters = list(model.parameters())
    pruned = StructuredPruner(model, CASES["plain_cnn"].inputs(2), pruning_ratio=0.5).prune()
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert pruned is not model
    model(CASES["plain_cnn"].inputs(2)).sum().backward()
    optimizer.step()


def test_in_place_returns_the_model_itself() -> None:
    model = CASES["plain_cnn"].make()
    pruner = StructuredPruner(model, CASES["plain_cnn"].inputs(2), pruning_ratio=0.5, inplace=True)
    assert pruner.prune() is model and model.conv1.out_channels == 4


def test_a_model_that_cannot_be_copied_says_to_prune_in_place() -> None:
    class Uncopyable(PlainCnn):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("planted")

    with pytest.raises(InputError, match="inplace=True"):
        StructuredPruner(Uncopyable(), torch.randn(2, 3, 8, 8)).prune()
    assert StructuredPruner(Uncopyable(), torch.randn(2, 3, 8, 8), inplace=True).prune()


@pytest.mark.parametrize("make", [lambda p: p, lambda p: p.to_json()])
def test_a_plan_replays_on_a_fresh_model(make: Callable[[Plan], Any]) -> None:
    model, pruned, plan = halved("residual")
    replayed = plan if isinstance(make(plan), Plan) else Plan.from_json(make(plan))
    again = slice_model(copy.deepcopy(model), replayed)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), pruned.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # torch's own encoder warns when it uses them
def test_an_encoder_with_a_padding_mask_runs_without_gradients_too() -> None:
    """Without gradients torch's encoder packs its input into nested tensors, unless its attention cannot read them."""
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    inputs = torch.randn(2, 5, 16)
    pruned = StructuredPruner(encoder, inputs, "magnitude", 0.5).prune().eval()
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        packed = pruned(inputs, src_key_padding_mask=mask)
    padded = pruned(inputs, src_key_padding_mask=mask)
    assert torch.allclose(packed, padded, atol=1e-5)
