"""The reference networks have the published sizes and keys, and load weights from safetensors only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from cleanai import StructuredPruner
from cleanai.data import DataMissingError, find_cifar10, load_cifar10, make_loader, trained_weights_path
from cleanai.errors import InputError
from cleanai.evaluate import count_macs, count_parameters, evaluate_model
from cleanai.models import (
    PaddedShortcut,
    SelfAttention,
    cifar_resnet,
    cifar_vit,
    digits_resnet,
    load_weights,
    resnet18_cifar,
    resnet20,
    resnet32,
    resnet44,
    resnet56,
)


@pytest.mark.parametrize(
    ("build", "parameters", "blocks"),
    [(resnet20, 269_722, 3), (resnet32, 464_154, 5), (resnet44, 658_586, 7), (resnet56, 853_018, 9)],
)
def test_cifar_resnets_have_the_published_sizes(build, parameters: int, blocks: int) -> None:
    model = build()
    assert count_parameters(model) == parameters
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 6 * blocks + 1
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_cifar_resnet_keys() -> None:
    expected = {"conv1.weight", "linear.weight", "linear.bias"}
    norms = ["bn1"]
    for stage in (1, 2, 3):
        for block in range(3):
            prefix = f"layer{stage}.{block}"
            expected |= {f"{prefix}.conv1.weight", f"{prefix}.conv2.weight"}
            norms += [f"{prefix}.bn1", f"{prefix}.bn2"]
    kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected |= {f"{norm}.{kind}" for norm in norms for kind in kinds}
    assert set(resnet20().state_dict()) == expected


@pytest.mark.parametrize("depth", [0, 2, 18, 21])
def test_cifar_resnet_refuses_other_depths(depth: int) -> None:
    with pytest.raises(InputError, match=rf"6n \+ 2.*got {depth}"):
        cifar_resnet(depth)


def test_padded_shortcut_takes_every_second_pixel_and_adds_zeros() -> None:
    x = torch.randn(2, 3, 6, 6)
    y = PaddedShortcut(zeros_before=1, zeros_after=2)(x)
    assert y.shape == (2, 6, 3, 3)
    assert torch.equal(y[:, 1:4], x[:, :, ::2, ::2])
    assert not y[:, :1].any() and not y[:, 4:].any()
    shortcut = resnet20().get_submodule("layer2.0.shortcut")
    assert isinstance(shortcut, PaddedShortcut)
    assert (shortcut.zeros_before, shortcut.zeros_after) == (8, 8)
    assert type(shortcut.zeros_before) is int


def test_resnet18_in_its_cifar_form() -> None:
    model = resnet18_cifar()
    assert count_parameters(model) == 11_173_962
    assert count_macs(model, torch.zeros(1, 3, 32, 32)) == 555_422_720
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_digits_resnet_downsamples_once_by_a_projection() -> None:
    model = digits_resnet()
    projections = [
        module for module in model.modules() if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
    ]
    assert [(conv.stride, conv.in_channels, conv.out_channels) for conv in projections] == [((2, 2), 16, 32)]
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == 8
    assert model.eval()(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_weights_come_back_equal(tmp_path: Path) -> None:
    source, target = cifar_resnet(8), cifar_resnet(8)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    assert load_weights(target, tmp_path / "weights.safetensors") is target
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(source.eval()(x), target.eval()(x))


def test_weights_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    model = cifar_resnet(8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = tmp_path / "weights.safetensors"
    wrong = dict(before)
    del wrong["conv1.weight"]
    wrong["linear.bias"] = torch.zeros(3)
    wrong["extra"] = torch.zeros(1)
    save_file(wrong, path)
    with pytest.raises(
        InputError, match=r"1 missing \(conv1.weight\); 1 not in the model \(extra\); .*linear.bias is \(3,\)"
    ):
        load_weights(model, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_cifar_vit_has_the_size_it_says() -> None:
    model = cifar_vit()
    dim, depth, tokens = 96, 6, 64
    stem = 48 * 27 + 2 * 48 + dim * 48 * 9 + dim
    block = 4 * (dim * dim + dim) + 2 * (dim * 2 * dim) + 2 * dim + dim + 4 * dim
    assert count_parameters(model) == 498_970 == stem + tokens * dim + depth * block + 2 * dim + 10 * dim + 10
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_attention_is_torchs_own() -> None:
    torch.manual_seed(0)
    attention, x = SelfAttention(12, 3).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    query, key, value = (
        layer(x).unflatten(2, (3, 4)).transpose(1, 2) for layer in (attention.query, attention.key, attention.value)
    )
    mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(x), attention.output(mixed))


@pytest.mark.parametrize("ratio", [0.3, 0.6])
def test_cifar_vit_loses_whole_heads_and_is_proven(ratio: float) -> None:
    torch.manual_seed(0)
    model = cifar_vit(dim=32, depth=2)
    pruner = StructuredPruner(model, torch.randn(1, 3, 32, 32), "l2", ratio, target="macs", global_pruning=True)
    pruned = pruner.prune()
    assert pruner.verification is not None and pruner.verification.passed
    heads = [module.num_heads for module in pruned.modules() if isinstance(module, SelfAttention)]
    widths = [module.query.out_features for module in pruned.modules() if isinstance(module, SelfAttention)]
    assert widths == [8 * count for count in heads]
    assert count_macs(pruned, torch.zeros(1, 3, 32, 32)) == pytest.approx(
        (1 - ratio) * count_macs(model, torch.zeros(1, 3, 32, 32)), rel=0.1
    )


@pytest.mark.parametrize(("dim", "heads"), [(30, 4), (9, 3), (0, 1), (8, 0)])
def test_cifar_vit_refuses_widths_that_do_not_divide(dim: int, heads: int) -> None:
    with pytest.raises(InputError, match=rf"multiple of 2 and of num_heads, got {dim} and {heads}"):
        cifar_vit(dim=dim, num_heads=heads)


def test_pickles_are_refused_and_not_executed(tmp_path: Path) -> None:
    trap = tmp_path / "executed"

    class Trap:
        def __reduce__(self):
            return trap.touch, ()

    torch.save({"linear.weight": Trap()}, tmp_path / "weights.pt")
    with pytest.raises(InputError, match="not a safetensors file"):
        load_weights(resnet20(), tmp_path / "weights.pt")
    assert not trap.exists()
    with pytest.raises(InputError, match="there is no file"):
        load_weights(resnet20(), tmp_path / "nowhere.safetensors")


@pytest.fixture(scope="module")
def first_test_images() -> TensorDataset:
    try:
        find_cifar10()
        trained_weights_path("resnet20")
    except DataMissingError:
        pytest.skip("needs CIFAR-10 and trained weights under the data root (CLEANAI_DATA, see data/README.md)")
    return load_cifar10("test", limit=1000)


def test_trained_resnet20_recognises_cifar10(first_test_images: TensorDataset) -> None:
    model = load_weights(resnet20(), trained_weights_path("resnet20"))
    result = evaluate_model(model, make_loader(first_test_images, batch_size=250))
    assert result.samples == 1000
    assert result.accuracy == pytest.approx(91.0, abs=1.5)
