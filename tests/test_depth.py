"""Dropping residual blocks whole: which modules are blocks, which go, and that what is left is the original without."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from nets import CASES, conv, randomise
from oracle import doubled, mask_original, run, to_double
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.convnext import CNBlockConfig, ConvNeXt, LayerNorm2d
from torchvision.ops import Permute

import cleanai.pruner
import cleanai.slicing
import cleanai.verify
from cleanai import (
    InputError,
    PlanError,
    RandomImportance,
    Report,
    StructuredPruner,
    VerificationError,
    analyze_model,
    collect_statistics,
    slice_model,
    verify_pruning,
)
from cleanai.depth import SkippedBlock
from cleanai.models import cifar_resnet, digits_resnet
from cleanai.plan import BlockCut, Plan, TensorCut

SETTINGS: dict[str, dict[str, Any]] = {
    "depth alone": {"pruning_ratio": 0.0},
    "local 0.3": {"pruning_ratio": 0.3},
    "local 0.65": {"pruning_ratio": 0.65},
    "global 0.5": {"pruning_ratio": 0.5, "global_pruning": True},
}


# ------------------------------------------------------------------------------------------------------------ networks


class PreActivation(nn.Module):
    """A pre-activation block: norm and ReLU come before each convolution, the shortcut is untouched."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(width), conv(width, 12)
        self.bn2, self.conv2 = nn.BatchNorm2d(12), conv(12, width)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv1(F.relu(self.bn1(x), inplace=True))
        return self.conv2(F.relu(self.bn2(branch), inplace=True)) + x


class InPlace(nn.Module):
    """Writes its result into its input."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(width, 12), conv(12, width)

    def forward(self, x: Tensor) -> Tensor:
        x += self.conv2(F.silu(self.conv1(x.clone())))
        return x


class Bottleneck(nn.Module):
    """As in a language model: attention weights are returned beside the stream, and nobody reads them."""

    def __init__(self, width: int = 8, extra: bool = True) -> None:
        super().__init__()
        self.norm, self.extra, self.dim = nn.LayerNorm(width), extra, width
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.up, self.down = nn.Linear(width, 20), nn.Linear(20, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        normal = self.norm(x)
        attended, weights = self.attention(normal, normal, normal, attn_mask=mask)
        x = x + attended
        return x + self.down(F.gelu(self.up(x))), (weights if self.extra else None)


class Images(nn.Module):
    """A stem, blocks that keep the shape, and a head."""

    def __init__(self, block: Callable[[], nn.Module], count: int = 4) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.blocks = nn.Sequential(*(block() for _ in range(count)))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.blocks(self.stem(x))).mean((2, 3)))


class Tokens(nn.Module):
    """An embedding, blocks that return tuples, and a head; asks its blocks for an attribute as transformers do."""

    def __init__(self, extra: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.layers: Any = nn.ModuleList(Bottleneck(extra=extra) for _ in range(4))
        self.head = nn.Linear(8, 5)

    def forward(self, words: Tensor) -> Tensor:
        assert self.layers[0].attention.batch_first
        x = self.embed(words)
        for layer in self.layers:
            x = layer(x=x, mask=None)[0]
        return self.head(x.mean(1))


class Encoder(nn.Module):
    """torch's own encoder between two linear layers."""

    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x))[:, 0])


class Wrapped(nn.Module):
    """A stack of blocks with a convolution behind it and a shortcut around it all (RCAN)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*(PreActivation() for _ in range(3)), conv(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Attended(nn.Module):
    """A block made of a residual attention module and a sum of its own (BERT)."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = PreActivation()
        self.up, self.down = conv(8, 12), conv(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x)
        return F.relu(x + self.down(F.gelu(self.up(x))))


@dataclasses.dataclass(frozen=True)
class Net:
    """A network, its inputs, its blocks, and what a block makes of its input when it is passed by."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    blocks: tuple[str, ...]
    passed: Callable[[Tensor], Any] = lambda x: x

    def make(self) -> Any:
        torch.manual_seed(0)
        return randomise(self.build()).eval()


def random(*shape: int) -> Callable[[int], Tensor]:
    """Batches of one shape that draw nothing from the global generator."""
    return lambda batch: torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch))


def vision_transformer() -> nn.Module:
    return torchvision.models.VisionTransformer(16, 4, 4, 2, 16, 24, num_classes=5)


def convnext() -> nn.Module:
    return ConvNeXt([CNBlockConfig(12, 16, 2), CNBlockConfig(16, None, 2)], num_classes=5)


WORDS = lambda batch: torch.arange(batch * 5).reshape(batch, 5) % 11
NETS = {
    "resnet18": Net(
        lambda: torchvision.models.resnet18(num_classes=5),
        random(3, 32, 32),
        ("layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"),
    ),
    "digits": Net(digits_resnet, random(1, 8, 8), ("block1", "block3")),
    "resnet14": Net(lambda: cifar_resnet(14), random(3, 16, 16), ("layer1.0", "layer1.1", "layer2.1", "layer3.1")),
    "vit": Net(vision_transformer, random(3, 16, 16), tuple(f"encoder.layers.encoder_layer_{i}" for i in range(4))),
    "convnext": Net(convnext, random(3, 16, 16), tuple(f"features.{stage}.{i}" for stage in (1, 3) for i in (0, 1))),
    "encoder": Net(Encoder, random(5, 6), tuple(f"encoder.layers.{i}" for i in range(4))),
    "encoder, norm first": Net(
        lambda: Encoder(norm_first=True),
        random(5, 6),
        tuple(f"encoder.layers.{i}" for i in range(4)),
    ),
    "pre-activation": Net(lambda: Images(PreActivation), random(3, 8, 8), tuple(f"blocks.{i}" for i in range(4))),
    "in place": Net(lambda: Images(InPlace), random(3, 8, 8), tuple(f"blocks.{i}" for i in range(4))),
    "tuples": Net(Tokens, WORDS, tuple(f"layers.{i}" for i in range(4)), lambda x: (x, None)),
    "tuples of one": Net(lambda: Tokens(False), WORDS, tuple(f"layers.{i}" for i in range(4)), lambda x: (x, None)),
    "wrapped": Net(
        lambda: Images(Wrapped, 2), random(3, 8, 8), tuple(f"blocks.{i}.body.{j}" for i in (0, 1) for j in range(3))
    ),
    "attended": Net(lambda: Images(Attended, 3), random(3, 8, 8), ("blocks.0", "blocks.1", "blocks.2")),
}


def make_pruner(name: str, model: nn.Module | None = None, **options: Any) -> Any:
    net = NETS[name]
    options = {"importance": RandomImportance(1), "pruning_ratio": 0.3, "depth_pruning_ratio": 0.5, **options}
    return StructuredPruner(net.make() if model is None else model, net.inputs(2), **options)


def pass_by(model: nn.Module, paths: tuple[str, ...], passed: Callable[[Tensor], Any]) -> None:
    """Makes blocks of a model hand on what they are given: their own forward never runs."""
    for path in paths:

        def forward(x: Tensor, *_: Any, **__: Any) -> Any:
            return passed(x)

        module: Any = model.get_submodule(path)
        module.forward = forward


def reference(net: Net, model: nn.Module, plan: Plan) -> nn.Module:
    """The original with its dropped slices set to zero and its dropped blocks passed by, independent of the engine."""
    masked = mask_original(model, plan)
    for path, module in model.named_modules():
        norm = masked.get_submodule(path)
        if isinstance(module, LayerNorm2d) and not isinstance(norm, LayerNorm2d):
            masked.set_submodule(path, nn.Sequential(Permute([0, 2, 3, 1]), norm, Permute([0, 3, 1, 2])))
    pass_by(masked, plan.dropped_blocks, net.passed)
    return masked


def difference(net: Net, model: nn.Module, pruned: nn.Module, plan: Plan, batch: int = 2) -> float:
    """How far a pruned model is from the reference, relative to the largest output."""
    inputs = doubled(net.inputs(batch))
    (theirs,), (ours,) = run(reference(net, model, plan), inputs), run(to_double(pruned), inputs)
    assert ours.shape == theirs.shape
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


def assert_counted_in_the_original(analysis: Any, plan: Plan) -> None:
    """The groups of a plan speak of the units of the whole model, those inside dropped blocks included."""
    gone = plan.dropped_blocks
    assert [(group.name, group.size) for group in plan.groups] == [(g.name, g.size) for g in analysis.groups]
    cut: dict[tuple[str, int], set[int]] = {}
    for group, record in zip(analysis.groups, plan.groups, strict=True):
        outside = [m for m in group.members if not m.parameter.startswith(tuple(f"{path}." for path in gone))]
        assert bool(outside) is (record.kept_size > 0), group.name
        for member in outside:
            positions = {
                int(p) for p, unit in zip(member.positions, member.units, strict=True) if unit in record.dropped
            }
            cut.setdefault((member.parameter, member.dim), set()).update(positions)
    assert {(c.parameter, c.dim): set(c.dropped) for c in plan.cuts} == {
        key: found for key, found in cut.items() if found
    }


class Untouched:
    """What a model was before: its modules and their classes, attributes, hooks, and every tensor."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.state = self._look()
        self.random = torch.get_rng_state()

    def _look(self) -> list[Any]:
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
        return [
            (
                name,
                id(module),
                type(module),
                sorted(key for key in vars(module)),
                [list(getattr(module, hook)) for hook in hooks],
                [(key, id(tensor), tensor._version) for key, tensor in module.named_parameters(recurse=False)],
            )
            for name, module in self.model.named_modules()
        ]

    def check(self) -> None:
        assert self._look() == self.state
        assert torch.equal(torch.get_rng_state(), self.random)


# ------------------------------------------------------------------------------------------------ finding the blocks


@pytest.mark.parametrize("name", NETS)
def test_the_blocks_of_a_network_are_found(name: str) -> None:
    model = NETS[name].make()
    before = Untouched(model)
    analysis = analyze_model(model, NETS[name].inputs(2))
    assert tuple(block.path for block in analysis.blocks) == NETS[name].blocks
    for block in analysis.blocks:
        module = model.get_submodule(block.path)
        assert block.kind == type(module).__name__
        assert block.parameters == sum(parameter.numel() for parameter in module.parameters())
    before.check()


def test_networks_without_shortcuts_have_no_blocks() -> None:
    for name in ("plain_cnn", "dense", "unet", "squeeze_excite", "class_token", "option_a", "attention_sdpa"):
        assert analyze_model(CASES[name].make(), CASES[name].inputs(2)).blocks == (), name
    assert [b.path for b in analyze_model(CASES["encoder_layer"].make(), CASES["encoder_layer"].inputs(2)).blocks] == [
        "layer"
    ]


class Position(nn.Module):
    """Adds a parameter: that is a sum, but not with anything made of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 8, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.position


class HandNorm(nn.Module):
    """A norm written out: it subtracts something made of the input, which is no shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(1, keepdim=True)
        return x * (x.square().mean(1, keepdim=True) + 1e-6).rsqrt() * self.weight


class Gate(nn.Module):
    """Scales its input by something made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(x.mean((2, 3), keepdim=True)).sigmoid()


class Projected(nn.Module):
    """A block with a layer on its shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.shortcut = conv(8, 8), conv(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.shortcut(x)


class Shuffled(PreActivation):
    """A block whose output has the channels of its input in another order."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flip(1)


class Listed(PreActivation):
    """A block that returns a list."""

    def forward(self, x: Tensor) -> Any:
        return [super().forward(x)]


class First(nn.Module):
    """The first of a list."""

    def forward(self, values: list[Tensor]) -> Tensor:
        return values[0]


class Applied(nn.Module):
    """A shortcut around whatever it is told to run."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)
        self._layers = [layer]  # not registered here

    def forward(self, x: Tensor) -> Tensor:
        return x + self._layers[0](self.norm(x))


class Odd(nn.Module):
    """Every way of being no block, in one network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.position, self.norm, self.gate = Position(), HandNorm(), Gate()
        self.projected, self.shuffled = Projected(), Shuffled()
        self.listed, self.first = Listed(), First()
        self.twice = PreActivation()
        self.one, self.other = PreActivation(), PreActivation()
        self.other.conv1.weight = self.one.conv1.weight
        self.left = self.right = PreActivation()
        self.inner = conv(8, 8)
        self.applied = Applied(self.inner)
        self.read = PreActivation()
        self.relu = nn.ReLU()
        self.idle = PreActivation()
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.fine = PreActivation()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.position(self.stem(x)))
        x = self.first(self.listed(self.shuffled(self.projected(self.gate(x)))))
        x = self.twice(self.twice(self.right(x)))
        x = self.applied(self.other(self.one(x)))
        kept: list[Tensor] = []
        handle = self.read.conv1.register_forward_hook(lambda module, args, output: kept.append(output))
        x = self.read(x)
        handle.remove()
        x = x + kept[0].mean(1, keepdim=True)
        return self.head(self.relu(self.down(self.fine(x))).mean((2, 3)))


WHY = {
    "position": "no shortcut leads around its layers",
    "norm": "no shortcut leads around its layers",
    "gate": "no shortcut leads around its layers",
    "projected": "no shortcut leads around its layers",
    "fine.conv1": "no shortcut leads around its layers|its input has the shape",
    "shuffled": "no shortcut|its channels in another order",
    "listed": "it returns something else than one tensor",
    "first": "it has no parameters",
    "relu": "it has no parameters",
    "twice": "it is called 2 times",
    "one": "it shares one.conv1.weight with other.conv1",
    "other": "it shares one.conv1.weight with one.conv1",
    "left": "it is registered under two names, left and right",
    "applied": "it runs inner, which is not part of it",
    "read": "reads what is computed inside it",
    "idle": "the example inputs do not reach it",
    "down": r"its input has the shape \(2, 8, 8, 8\) and its output \(2, 8, 4, 4\)",
}


@pytest.fixture(scope="module")
def odd() -> Any:
    torch.manual_seed(0)
    return randomise(Odd()).eval()


@pytest.mark.parametrize("path", WHY)
def test_what_is_no_block_and_why(odd: Any, path: str) -> None:
    with pytest.raises(InputError, match=f"drop_layers: {path} cannot be dropped whole: .*({WHY[path]})") as error:
        StructuredPruner(odd, torch.randn(2, 3, 8, 8), "l2", 0.3, drop_layers=[path])
    assert "the residual blocks are fine" in str(error.value)


def test_what_is_no_block_is_no_candidate(odd: Any) -> None:
    assert [block.path for block in analyze_model(odd, torch.randn(2, 3, 8, 8)).blocks] == ["fine"]


def test_a_block_with_a_downsampling_shortcut_cannot_be_dropped_and_the_error_says_so() -> None:
    with pytest.raises(
        InputError, match=r"layer2.0 cannot be dropped whole: its input has the shape .*output"
    ) as error:
        make_pruner("resnet18", drop_layers=["layer2.0"])
    assert "layer1.0, layer1.1, layer2.1, layer3.1, layer4.1" in str(error.value)
    with pytest.raises(InputError, match="did you mean"):
        make_pruner("resnet18", drop_layers=["layer1.9"])


def test_asking_for_depth_where_there_is_none() -> None:
    case = CASES["plain_cnn"]
    with pytest.raises(InputError, match="no residual block"):
        StructuredPruner(case.make(), case.inputs(2), "l2", 0.3, depth_pruning_ratio=0.5)
    with pytest.raises(InputError, match=r"conv1 cannot be dropped whole: .*the model has no residual blocks"):
        StructuredPruner(case.make(), case.inputs(2), "l2", 0.3, drop_layers="conv1")
    with pytest.raises(InputError, match="depth_pruning_ratio is 1"):
        make_pruner("digits", depth_pruning_ratio=1.0)


def test_ignored_layers_are_in_no_block() -> None:
    pruner = make_pruner("resnet18", ignored_layers=["layer1.0.conv1", "layer4"])
    assert [block.path for block in pruner.analysis.blocks] == ["layer1.1", "layer2.1", "layer3.1"]
    with pytest.raises(InputError, match="it reaches the ignored layer layer4"):
        make_pruner("resnet18", ignored_layers=["layer4"], drop_layers=["layer4.1"])


# ------------------------------------------------------------------------------------------ the model without them


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", NETS)
def test_what_is_left_is_the_original_with_its_blocks_passed_by(name: str, setting: str) -> None:
    net = NETS[name]
    model = net.make()
    before = Untouched(model)
    pruner = make_pruner(name, model, **SETTINGS[setting])
    pruned = pruner.prune()
    before.check()
    plan, dropped = pruner.plan, pruner.plan.dropped_blocks
    assert len(dropped) == max(1, len(net.blocks) // 2 + len(net.blocks) % 2 * (len(net.blocks) > 1))
    assert set(dropped) < set(net.blocks) and [block.module for block in plan.blocks] == list(net.blocks)
    assert pruner.verification.passed
    for batch in (1, 2):
        assert difference(net, model, pruned, plan, batch) < 1e-9
    # Nothing of a dropped block is left, and nothing inside one is cut.
    inside = tuple(f"{path}." for path in dropped)
    assert not any(name.startswith(inside) for name in pruned.state_dict())
    assert not any(cut.parameter.startswith(inside) for cut in plan.cuts)
    assert_counted_in_the_original(pruner.analysis, plan)
    if setting == "depth alone":
        assert not plan.cuts
        for key, tensor in pruned.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[key]), key
    else:
        assert plan.cuts
    # The plan is data: it says the same to a fresh model.
    again = Plan.from_json(plan.to_json())
    assert again == plan
    fresh = slice_model(net.make(), again)
    for key, tensor in pruned.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[key]), key
    # And the model is a model: it trains, copies and pickles.
    run(pruned.train(), net.inputs(2))[0].sum().backward()
    pruned.eval()
    for twin in (copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        assert torch.equal(run(twin, net.inputs(1))[0], run(pruned, net.inputs(1))[0])


def test_resnet34_loses_blocks_and_channels() -> None:
    net = Net(lambda: torchvision.models.resnet34(num_classes=5), random(3, 32, 32), ())
    model = net.make()
    pruner = StructuredPruner(model, net.inputs(1), "l2", 0.3, depth_pruning_ratio=0.4)
    pruned = pruner.prune()
    assert pruner.plan is not None
    assert len(pruner.plan.blocks) == 13 and len(pruner.plan.dropped_blocks) == 5
    assert difference(net, model, pruned, pruner.plan) < 1e-9


@pytest.mark.parametrize("name", ["resnet18", "encoder", "tuples", "in place"])
def test_the_pruned_model_can_be_exported(name: str) -> None:
    inputs = NETS[name].inputs(2)
    pruned = make_pruner(name).prune()
    exported = torch.export.export(pruned, (inputs,)).module()
    assert torch.allclose(exported(inputs), pruned(inputs), atol=1e-5)


@pytest.mark.parametrize("first", [0, 1])
def test_any_layer_of_an_encoder_can_go_also_the_first(first: int) -> None:
    """`nn.TransformerEncoder` looks at attributes of its first layer."""
    net = NETS["encoder"]
    model = net.make()
    pruner = make_pruner("encoder", model, depth_pruning_ratio=0.0, drop_layers=[f"encoder.layers.{first}"])
    pruned = pruner.prune()
    assert difference(net, model, pruned, pruner.plan) < 1e-9
    with torch.no_grad():
        assert pruned(net.inputs(2)).isfinite().all()


def test_a_skipped_block_returns_what_it_is_given_and_remembers_plain_attributes() -> None:
    block = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).eval()
    skipped: Any = SkippedBlock(block, places=3)
    x = torch.randn(1, 4, 8)
    assert skipped(torch.tensor([1]), None, x, torch.ones(2)) == (x, None, None)
    assert skipped(mask=None, hidden=x)[0] is x
    assert (skipped.self_attn.batch_first, skipped.norm_first, skipped.training) == (True, False, False)
    assert list(skipped.parameters()) == [] and list(skipped.children()) == []
    assert repr(skipped) == "SkippedBlock(TransformerEncoderLayer)"


def test_a_named_block_may_be_larger_or_smaller_than_a_candidate() -> None:
    net = NETS["resnet18"]
    model = net.make()
    pruner = make_pruner("resnet18", model, depth_pruning_ratio=0.2, drop_layers=["layer1", "layer1.0"])
    pruned = pruner.prune()
    assert pruner.plan.dropped_blocks == ("layer1",)
    assert isinstance(pruned.layer1, SkippedBlock)
    assert difference(net, model, pruned, pruner.plan) < 1e-9
    net = NETS["attended"]
    model = net.make()
    pruner = make_pruner("attended", model, depth_pruning_ratio=0.0, drop_layers=[model.blocks[1].attention])
    pruned = pruner.prune()
    assert pruner.plan.dropped_blocks == ("blocks.1.attention",)
    assert difference(net, model, pruned, pruner.plan) < 1e-9


def test_a_type_names_all_of_its_modules() -> None:
    pruner = make_pruner("pre-activation", depth_pruning_ratio=0.0, drop_layers=PreActivation)
    pruner.prune()
    assert pruner.plan.dropped_blocks == NETS["pre-activation"].blocks


def test_pruning_in_place_replaces_the_blocks_and_goes_on_from_there() -> None:
    net = NETS["resnet14"]
    model = net.make()
    stem = model.conv1
    pruner = make_pruner("resnet14", model, inplace=True, drop_layers=["layer1.1"])
    assert pruner.prune() is model and model.conv1 is stem
    assert len(pruner.plan.dropped_blocks) == 2 and isinstance(model.layer1[1], SkippedBlock)
    assert len(pruner.analysis.blocks) == 2
    pruner.prune()
    assert len(pruner.analysis.blocks) == 1
    model(net.inputs(2))


# ------------------------------------------------------------------------------------------------ which blocks go


def test_the_share_is_rounded_and_one_block_always_stays() -> None:
    counts = {}
    for ratio in (0.05, 0.1, 0.5, 0.99):
        plan = make_pruner("resnet18", pruning_ratio=0.0, depth_pruning_ratio=ratio).make_plan()
        counts[ratio] = len(plan.dropped_blocks)
    assert counts == {0.05: 0, 0.1: 1, 0.5: 3, 0.99: 4}


def test_named_blocks_count_towards_the_share() -> None:
    scores = make_pruner("resnet14").score_blocks()
    last = max(scores, key=lambda path: scores[path])
    plan = make_pruner("resnet14", drop_layers=[last]).make_plan()
    assert len(plan.dropped_blocks) == 2 and last in plan.dropped_blocks
    lowest = min(scores, key=lambda path: scores[path])
    assert lowest in plan.dropped_blocks


def test_a_larger_share_drops_the_same_blocks_and_more() -> None:
    dropped = [
        set(make_pruner("pre-activation", depth_pruning_ratio=ratio).make_plan().dropped_blocks)
        for ratio in (0.25, 0.5, 0.75)
    ]
    assert [len(found) for found in dropped] == [1, 2, 3] and dropped[0] < dropped[1] < dropped[2]


@pytest.mark.parametrize("importance", ["l1", "l2"])
def test_weight_criteria_drop_the_blocks_with_the_smallest_channels(importance: str) -> None:
    model = NETS["resnet14"].make()
    with torch.no_grad():
        for path in ("layer1.1", "layer3.1"):
            for parameter in model.get_submodule(path).parameters():
                parameter.mul_(0.1)
    pruner = make_pruner("resnet14", model, importance=importance)
    assert pruner.make_plan().dropped_blocks == ("layer1.1", "layer3.1")
    scores = pruner.score_blocks()
    assert len(scores) == 4 and sum(scores.values()) / 4 == pytest.approx(1)


@pytest.mark.parametrize("importance", ["activation", "wanda", "weight_activation"])
def test_activation_criteria_drop_the_blocks_that_change_least(importance: str) -> None:
    """ShortGPT's block influence, computed here with a few lines of hooks."""
    net = NETS["pre-activation"]
    model = net.make()
    with torch.no_grad():
        model.blocks[2].conv2.weight.mul_(0.01), model.blocks[2].conv2.bias.zero_()
    batches = [net.inputs(batch) for batch in (3, 4)]
    pruner = make_pruner("pre-activation", model, importance=importance, depth_pruning_ratio=0.25)
    with pytest.raises(InputError, match="collect_activations"):
        pruner.make_plan()
    pruner.collect_activations(batches, progress=False)
    cosines: dict[str, list[Tensor]] = {}
    for path in net.blocks:
        model.get_submodule(path).register_forward_hook(
            lambda module, args, output, path=path: cosines.setdefault(path, []).append(
                F.cosine_similarity(args[0].double(), output.double(), dim=1).flatten()
            )
        )
    with torch.no_grad():
        for batch in batches:
            model(batch)
    expected = {path: 1 - float(torch.cat(found).mean()) for path, found in cosines.items()}
    scores = pruner.score_blocks()
    assert scores == pytest.approx(expected, rel=1e-4)
    assert pruner.make_plan().dropped_blocks == (min(expected, key=lambda path: expected[path]),) == ("blocks.2",)


def test_influence_is_measured_before_a_block_writes_to_its_input() -> None:
    net = NETS["in place"]
    pruner = make_pruner("in place", importance="activation")
    pruner.collect_activations([net.inputs(2)], progress=False)
    assert all(score > 1e-3 for score in pruner.score_blocks().values())


def test_block_statistics_of_shards_add_up() -> None:
    net = NETS["tuples"]
    model, blocks = net.make(), {"layers.0": 2, "layers.1": None}
    batches = [net.inputs(2), net.inputs(3)]
    whole = collect_statistics(model, batches, progress=False, blocks=blocks)
    parts = [collect_statistics(model, [batch], progress=False, blocks=blocks) for batch in batches]
    merged = parts[0].merge(parts[1])
    for path in blocks:
        assert merged.blocks[path].influence == pytest.approx(whole.blocks[path].influence)
        assert 0 < whole.blocks[path].influence < 2


def test_blocks_that_a_criterion_cannot_see_stay_and_are_named() -> None:
    def blind(group: Any) -> Any:
        return None if group.name.startswith("blocks.1") else torch.ones(group.size)

    pruner = make_pruner("pre-activation", importance=blind, depth_pruning_ratio=0.75)
    plan = pruner.make_plan()
    assert plan.dropped_blocks == ("blocks.0", "blocks.2", "blocks.3")
    assert any("does not see" in line and "blocks.1" in line for line in pruner.warnings)


class OneLayer(nn.Module):
    """A block without a channel of its own: its one convolution reads and writes the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


@pytest.mark.parametrize("importance", ["l2", "random", "activation"])
def test_blocks_without_channels_of_their_own_are_judged_as_a_whole(importance: str) -> None:
    model = randomise(Images(OneLayer)).eval()
    x = NETS["pre-activation"].inputs(2)
    with torch.no_grad():
        model.blocks[2].conv.weight.mul_(0.1), model.blocks[2].conv.bias.zero_()
    pruner = StructuredPruner(model, x, importance, 0.0, depth_pruning_ratio=0.25)
    pruner.collect_activations([x], progress=False)
    pruner.prune()
    assert pruner.plan is not None and len(pruner.plan.dropped_blocks) == 1
    assert pruner.plan.dropped_blocks == ("blocks.2",) or importance == "random"


class Demanding(Images):
    """Reads a tensor of its second block from outside."""

    def forward(self, x: Tensor) -> Tensor:
        second: Any = self.blocks[1]
        return super().forward(x) * second.conv1.weight.dtype.itemsize


def test_a_block_that_the_model_cannot_run_without_stays() -> None:
    torch.manual_seed(0)
    model = randomise(Demanding(PreActivation)).eval()
    with torch.no_grad():
        model.blocks[1].conv1.weight.mul_(1e-3)  # it would go first
    x = NETS["pre-activation"].inputs(2)
    before = Untouched(model)
    pruner = StructuredPruner(model, x, "l2", 0.3, depth_pruning_ratio=0.5)
    pruner.prune()
    before.check()
    assert pruner.plan is not None
    assert len(pruner.plan.dropped_blocks) == 2 and "blocks.1" not in pruner.plan.dropped_blocks
    note = next(block.note for block in pruner.plan.blocks if block.module == "blocks.1")
    assert note.startswith("kept: the model does not run without it: the forward raised AttributeError")
    with pytest.raises(InputError, match=r"does not run without blocks\.1: the forward raised"):
        StructuredPruner(model, x, "l2", 0.3, drop_layers=["blocks.1"]).make_plan()
    before.check()


class Held(Images):
    """Calls its blocks through a plain list, not through their places."""

    def __init__(self) -> None:
        super().__init__(PreActivation)
        self.held = [list(self.blocks)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.held[0]:
            x = block(x)
        return self.head(x.mean((2, 3)))


def test_a_block_that_is_not_called_through_its_place_cannot_be_dropped() -> None:
    model = randomise(Held()).eval()
    x = NETS["pre-activation"].inputs(2)
    with pytest.raises(InputError, match=r"blocks\.2 is not called through its place in the model"):
        StructuredPruner(model, x, "l2", 0.3, drop_layers=["blocks.2"]).make_plan()
    plan = StructuredPruner(model, x, "l2", 0.3, depth_pruning_ratio=0.5).make_plan()
    assert not plan.dropped_blocks and all("through its place" in block.note for block in plan.blocks)


# ------------------------------------------------------------------------------------------ together with channels


@pytest.mark.parametrize("target", ["params", "macs"])
def test_a_budget_counts_what_the_blocks_saved(target: str) -> None:
    pruner = make_pruner("resnet14", pruning_ratio=0.5, target=target, depth_pruning_ratio=0.25)
    pruned = pruner.prune()
    budget = pruner.report(metrics=None).budget
    assert budget.reached == pytest.approx(0.5, abs=0.04)
    left = sum(parameter.numel() for parameter in pruned.parameters())
    assert budget.params == pytest.approx(1 - left / sum(p.numel() for p in pruner.model.parameters()))
    alone = make_pruner("resnet14", pruning_ratio=0.5, target=target, depth_pruning_ratio=0.0).make_plan()
    names = [group.name for group in pruner.plan.groups if group.kept_size]
    shares = [sum(len(g.dropped) for g in plan.groups if g.name in names) for plan in (pruner.plan, alone)]
    assert shares[0] < shares[1]


def test_blocks_that_save_more_than_was_asked_leave_the_channels_whole() -> None:
    pruner = make_pruner("pre-activation", pruning_ratio=0.1, target="params", depth_pruning_ratio=0.75)
    pruner.prune()
    assert not pruner.plan.cuts and pruner.plan.dropped_units == 36
    assert "residual blocks were dropped whole" in pruner.report().budget.note


def test_layer_ratios_of_layers_that_are_gone_do_not_matter() -> None:
    ratios: Any = {"layer1.1.conv1": 0.8, "layer1": 0.5, "layer3": 0.65, nn.Linear: 0.0}
    pruner = make_pruner("resnet18", layer_pruning_ratios=ratios, depth_pruning_ratio=0.0, drop_layers=["layer1"])
    plan = pruner.make_plan()
    sizes = {group.name: (group.size, group.kept_size) for group in plan.groups}
    assert sizes["layer3.1.conv1"] == (256, 90) and sizes["conv1"] == (64, 45)


def test_rounds_of_pruning_drop_blocks_once() -> None:
    net = NETS["resnet14"]
    model = net.make()
    pruner = make_pruner("resnet14", model, importance="l2", pruning_ratio=0.5, iterative_steps=3)
    pruned = pruner.prune()
    assert len(pruner.plan.dropped_blocks) == 2
    assert difference(net, model, pruned, pruner.plan) < 1e-9
    for group in pruner.plan.groups:
        assert not group.kept_size or group.kept_size == pytest.approx(group.size / 2, abs=1)


# -------------------------------------------------------------------------------------------------- plans as data


@pytest.mark.parametrize("name", ["resnet14", "vit", "tuples"])
def test_two_rounds_compose_to_one_plan(name: str) -> None:
    """Channels first, also inside blocks that go in the second round; then blocks, and channels once more."""
    net = NETS[name]
    model = net.make()
    first = make_pruner(name, model, depth_pruning_ratio=0.0)
    half = first.prune()
    second = make_pruner(name, half, importance=RandomImportance(5), depth_pruning_ratio=0.5)
    pruned = second.prune()
    third = make_pruner(name, pruned, importance=RandomImportance(6), depth_pruning_ratio=0.3)
    last = third.prune()
    inside = tuple(f"{path}." for path in second.plan.dropped_blocks)
    assert any(cut.parameter.startswith(inside) for cut in first.plan.cuts)
    total = first.plan.then(second.plan).then(third.plan)
    assert not any(cut.parameter.startswith(inside) for cut in total.cuts)
    if name == "resnet14":  # half of two heads are one head, which is another group
        assert_counted_in_the_original(first.analysis, total)
    assert set(total.dropped_blocks) == {*second.plan.dropped_blocks, *third.plan.dropped_blocks}
    assert [block.module for block in total.blocks] == list(net.blocks)
    replayed = slice_model(net.make(), Plan.from_json(total.to_json()))
    assert replayed.state_dict().keys() == last.state_dict().keys()
    for key, tensor in last.state_dict().items():
        assert torch.equal(tensor, replayed.state_dict()[key]), key
    assert difference(net, model, last, total) < 1e-9
    assert verify_pruning(model, last, total, net.inputs(2)).passed
    with pytest.raises(PlanError, match=r"dropped|gone with a block"):
        second.plan.then(Plan(blocks=second.plan.blocks))


BLOCKS = Plan(blocks=(BlockCut("a.0", "Block"), BlockCut("a.1", "Block", False, score=0.5, note="kept")))


def test_a_plan_prints_and_compares_its_blocks() -> None:
    assert repr(BLOCKS) == "Plan(1 of 2 blocks, 0 of 0 channels in 0 of 0 groups)"
    assert str(BLOCKS).splitlines()[1:] == ["  a.0  Block dropped", "  a.1  Block kept  kept"]
    assert not BLOCKS.is_empty and Plan(blocks=BLOCKS.blocks[1:]).is_empty
    other = Plan(blocks=(BlockCut("a.1", "Block"),))
    assert BLOCKS.compare(other) == {"a.0": ((0,), ()), "a.1": ((), (0,))}
    assert BLOCKS.compare(BLOCKS) == {}


def test_scores_of_an_earlier_plan_are_kept_where_a_later_one_has_none() -> None:
    later = Plan(blocks=(BlockCut("a.1", "Block"),))
    assert BLOCKS.then(later).blocks[1] == BlockCut("a.1", "Block", score=0.5)


IMPOSSIBLE: dict[str, tuple[dict[str, Any], str]] = {
    "a cut inside": ({"cuts": (TensorCut("a.0.weight", 0, 4, (1,)),)}, "gone with a block"),
    "a block inside": ({"blocks": (*BLOCKS.blocks, BlockCut("a.0.b", "Block"))}, "gone with a block"),
    "twice": ({"blocks": BLOCKS.blocks * 2}, "a.0 appears twice"),
    "the whole model": ({"blocks": (BlockCut("", "Block"),)}, "the whole model"),
    "fewer than no values": ({"blocks": (BlockCut("a", "Block", places=-1),)}, "returns -1 values"),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_plans_that_contradict_themselves_are_refused(what: str) -> None:
    changes, message = IMPOSSIBLE[what]
    with pytest.raises(PlanError, match=message):
        dataclasses.replace(BLOCKS, **changes)


@pytest.mark.parametrize(
    "entry",
    [{"module": 3}, {"dropped": 1}, {"dropped": None}, {"places": "0"}, {"score": "high"}, {"code": "import os"}],
)
def test_damaged_blocks_are_an_error_of_the_plan(entry: dict[str, Any]) -> None:
    data = json.loads(BLOCKS.to_json())
    data["blocks"][0].update(entry)
    with pytest.raises(PlanError, match="damaged"):
        Plan.from_json(json.dumps(data))
    data["blocks"] = {}
    with pytest.raises(PlanError, match="damaged"):
        Plan.from_json(json.dumps(data))


def test_plans_from_before_there_were_blocks_are_read() -> None:
    data = json.loads(Plan().to_json())
    del data["blocks"]
    assert Plan.from_json(json.dumps(data)) == Plan()


def test_a_plan_for_another_model_changes_nothing() -> None:
    model = NETS["resnet14"].make()
    before = Untouched(model)
    for plan in (BLOCKS, Plan(blocks=(BlockCut("layer1.0", "CifarBlock"), BlockCut("layer9", "CifarBlock")))):
        with pytest.raises(PlanError, match="which the model does not have: is it another architecture"):
            slice_model(model, plan)
    before.check()
    once = Plan(blocks=(BlockCut("layer1.0", "CifarBlock"),))
    with pytest.raises(PlanError, match="dropped already"):
        slice_model(slice_model(model, once), once)


def test_an_error_while_slicing_takes_the_dropped_blocks_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = NETS["resnet14"].make()
    before = Untouched(model)
    plan = make_pruner("resnet14", model).make_plan()

    def fail(*_: Any) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(cleanai.slicing, "update_sizes", fail)
    with pytest.raises(RuntimeError, match="planted"):
        slice_model(model, plan)
    before.check()


# ---------------------------------------------------------------------------------------------------- the proof


def drop_another(model: nn.Module, plan: Plan, **_: Any) -> nn.Module:
    """A slicer that takes the block beside the right one."""
    beside = {"blocks.0": "blocks.1", "blocks.1": "blocks.2", "blocks.2": "blocks.3", "blocks.3": "blocks.0"}
    blocks = tuple(dataclasses.replace(block, module=beside[block.module]) for block in plan.blocks if block.dropped)
    return slice_model(model, Plan(blocks=blocks))


def drop_nothing(model: nn.Module, plan: Plan, **_: Any) -> nn.Module:
    """A slicer that leaves the blocks where they are."""
    return slice_model(model, dataclasses.replace(plan, blocks=()))


class Doubling(SkippedBlock):
    """A skipped block that returns twice its input."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return 2 * super().forward(*args, **kwargs)


@pytest.mark.parametrize("bug", ["another block", "no block", "not the identity"])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_planted_bug_is_caught_and_the_model_is_as_it_was(
    bug: str, inplace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = NETS["pre-activation"].make()
    before = Untouched(model)
    pruner = make_pruner("pre-activation", model, pruning_ratio=0.0, depth_pruning_ratio=0.25, inplace=inplace)
    (path,) = pruner.make_plan().dropped_blocks
    if bug == "not the identity":
        monkeypatch.setattr(cleanai.slicing, "SkippedBlock", Doubling)
    else:
        # The plan is made with the right slicer; the model is cut with the wrong one.
        plan = pruner.make_plan()
        monkeypatch.setattr(pruner, "make_plan", lambda: plan)
        wrong = drop_another if bug == "another block" else drop_nothing
        monkeypatch.setattr(cleanai.pruner, "slice_model", wrong)
        monkeypatch.setattr(cleanai.verify, "slice_model", wrong)
    with pytest.raises(VerificationError, match=f"NOT equal.*the block at fault is {path}. The model has not been"):
        pruner.prune()
    before.check()


def test_a_zero_branch_does_not_hide_a_wrong_block() -> None:
    """With its last weights at zero a block is the identity: the proof's random weights still see which one went."""
    net = NETS["pre-activation"]
    model = net.make()
    with torch.no_grad():
        for block in model.blocks:
            block.conv2.weight.zero_(), block.conv2.bias.zero_()
    plan = Plan(blocks=(BlockCut("blocks.1", "PreActivation"),))
    wrong = slice_model(copy.deepcopy(model), Plan(blocks=(BlockCut("blocks.2", "PreActivation"),)))
    assert torch.equal(model(net.inputs(2)), wrong(net.inputs(2)))
    assert not verify_pruning(model, wrong, plan, net.inputs(2)).passed
    kept = copy.deepcopy(model)
    assert not verify_pruning(model, kept, plan, net.inputs(2)).passed
    assert verify_pruning(model, slice_model(kept, plan), plan, net.inputs(2)).passed


def test_a_failing_scorer_leaves_the_model_whole() -> None:
    model = NETS["pre-activation"].make()
    before = Untouched(model)
    calls: list[int] = []

    def fail_late(group: Any) -> Tensor:
        calls.append(1)
        if len(calls) > 6:  # while channels are chosen, with the blocks already out
            raise RuntimeError("planted")
        return torch.rand(group.size)

    pruner = make_pruner("pre-activation", model, importance=fail_late)
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="planted"):
        pruner.prune()
    torch.set_rng_state(state)
    before.check()


# ---------------------------------------------------------------------------------------------------- the report


@pytest.fixture(scope="module")
def report() -> Any:
    pruner = make_pruner("resnet18", depth_pruning_ratio=0.4, importance="l2", drop_layers=["layer3.1"])
    pruner._measure = lambda model, latency=True: StructuredPruner._measure(pruner, model, False)
    pruner.prune()
    return pruner.report(model_name="net")


def test_the_report_lists_the_blocks(report: Any) -> None:
    assert [block.name for block in report.blocks] == list(NETS["resnet18"].blocks)
    model = NETS["resnet18"].make()
    for block in report.blocks:
        assert block.parameters == sum(p.numel() for p in model.get_submodule(block.name).parameters())
        assert block.macs == 2 * (2 * 64 * 64 * 9 * 64) and block.score > 0
    assert sum(block.removed for block in report.blocks) == 2
    lost = sum(block.parameters for block in report.blocks if block.removed)
    assert report.metrics["original"].parameters - report.metrics["pruned"].parameters > lost


def test_the_report_speaks_of_blocks_in_both_languages(report: Any, tmp_path: Path) -> None:
    english, turkish = (str(dataclasses.replace(report, language=language)) for language in ("en", "tr"))
    rows = [line.split() for line in english.splitlines() if line.startswith("  layer3.1 ")]
    assert [(row[0], row[1], row[-1]) for row in rows] == [("layer3.1", "BasicBlock", "removed")]
    english, turkish = (" ".join(text.split()) for text in (english, turkish))
    for phrase in (
        "Residual blocks",
        "2 of 5 residual blocks were dropped",
        "dropped blocks skipped and removed channels masked",
        "depth pruning ratio: 0.4",
        "drop layers: layer3.1",
    ):
        assert phrase in english, phrase
    for phrase in (
        "Artık bloklar",
        "5 artık bloğun 2 tanesi çıkarıldı",
        "çıkarılan blokları atlanmış",
        "derinlik budama oranı: 0,4",
        "çıkarılacak katmanlar: layer3.1",
    ):
        assert phrase in turkish, phrase
    assert "block " not in turkish and "blocks" not in turkish
    for form in ("report.html", "report.md"):
        for language, word in (("en", "Residual blocks"), ("tr", "Artık bloklar")):
            saved = dataclasses.replace(report, language=language).save(tmp_path / form).read_text(encoding="utf-8")
            assert word in saved and "layer3.1" in saved, (form, language)
    assert "Artık bloklar" in dataclasses.replace(report, language="tr")._repr_html_()
    path = report.save(tmp_path / "report.json")
    assert Report.load(path) == report


def test_reports_without_depth_say_nothing_of_blocks() -> None:
    pruner = make_pruner("digits", depth_pruning_ratio=0.0)
    pruner._measure = lambda model, latency=True: StructuredPruner._measure(pruner, model, False)
    pruner.prune()
    report = pruner.report()
    assert report.blocks == () and "block" not in str(report).replace("block1", "").replace("block2", "").replace(
        "block3", ""
    )
    assert "depth_pruning_ratio" not in report.settings
    data = report.to_dict()
    del data["blocks"]
    assert Report.from_dict(data) == report


def test_many_blocks_are_cut_short_in_a_terminal(report: Any) -> None:
    blocks = tuple(dataclasses.replace(report.blocks[0], name=f"b{i}", removed=i == 70) for i in range(80))
    text = str(dataclasses.replace(report, blocks=blocks))
    assert "40 more blocks are not shown here" in text and "  b70 " in text and "  b60 " not in text
