"""Layers as matrices: rows times weights equal the layer, in every setting; moments are sums, however they come."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cleanai.matrices import LayerMatrix, LayerMoments, Moments, sum_products

KINDS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def assert_equals_layer(layer: Any, x: Tensor, count: int = 10**9) -> None:
    """Rows @ weight.T + bias = what the layer makes, at all output positions or at some."""
    layer, x = layer.double(), x.double()
    made = layer(x).detach()
    matrix = LayerMatrix(layer)
    where = matrix.sample(made, count, "seed")
    rows, out = matrix.read(x, where), matrix.pick(made, where)
    bias = 0 if layer.bias is None else layer.bias.detach().reshape(matrix.groups, 1, -1)
    assert rows.shape[2] == matrix.inputs and out.shape[2] == matrix.outputs
    assert torch.allclose(rows @ matrix.weight.mT + bias, out, atol=1e-10)
    if count >= 10**9:
        assert out.numel() == made.numel() and torch.allclose(out.sum(), made.sum(), atol=1e-8)
    assert torch.equal(matrix.unfold(matrix.fold(layer.weight)), layer.weight)


@pytest.mark.parametrize("shape", [(5,), (7, 5), (3, 4, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_of_any_number_of_dimensions(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    assert_equals_layer(nn.Linear(5, 3, bias=bias), torch.randn(shape))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("padding", ["zeros", "reflect", "circular", "replicate"])
def test_every_padding_mode(dims: int, padding: str) -> None:
    torch.manual_seed(0)
    layer = KINDS[dims](4, 6, 3, stride=2, dilation=2, padding=2, groups=2, padding_mode=padding)
    assert_equals_layer(layer, torch.randn(2, 4, *[7, 8, 6][:dims]))


@pytest.mark.parametrize(("padding", "kernel"), [("same", 3), ("same", 4), ("valid", 3)])
def test_padding_by_name(padding: str, kernel: int) -> None:
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="even kernel") if kernel == 4 else torch.no_grad():
        assert_equals_layer(nn.Conv2d(2, 3, kernel, padding=padding, dilation=1), torch.randn(2, 2, 7, 8))


def test_inputs_without_a_batch_and_sampled_positions() -> None:
    torch.manual_seed(0)
    assert_equals_layer(nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0)), torch.randn(3, 9, 8))
    assert_equals_layer(nn.Conv2d(3, 4, 3), torch.randn(5, 3, 9, 8), count=7)
    assert_equals_layer(nn.ConvTranspose2d(4, 2, 3, stride=2), torch.randn(5, 4, 5, 4), count=7)
    assert_equals_layer(nn.Linear(3, 4), torch.randn(5, 6, 3), count=7)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "output_padding": 1, "padding": 1},
        {"stride": 3, "output_padding": 2, "groups": 2},
        {"stride": 2, "dilation": 2, "padding": 3, "groups": 4, "bias": False},
    ],
)
def test_transposed_convolutions(dims: int, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    assert_equals_layer(TRANSPOSED[dims](4, 8, 3, **options), torch.randn(2, 4, *[4, 5, 3][:dims]))


@settings(max_examples=40, deadline=None)
@given(
    dims=st.integers(1, 3),
    groups=st.integers(1, 3),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 2),
    transposed=st.booleans(),
)
def test_convolutions_of_any_size(
    dims: int,
    groups: int,
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int,
    dilation: int,
    padding: int,
    transposed: bool,
) -> None:
    make = (TRANSPOSED if transposed else KINDS)[dims]
    extra = {"output_padding": min(stride, dilation * 2) - 1} if transposed and stride > 1 else {}
    layer = make(groups * inputs, groups * outputs, kernel, stride, padding, groups=groups, dilation=dilation, **extra)
    assert_equals_layer(layer, torch.randn(2, groups * inputs, *[6, 5, 7][:dims]))
    matrix = LayerMatrix(layer)
    some = torch.randn(matrix.groups, matrix.outputs, matrix.inputs, dtype=torch.float64)
    assert torch.equal(matrix.fold(matrix.unfold(some)), some)


def test_what_is_no_such_layer() -> None:
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    assert LayerMatrix.fits(nn.Linear(2, 2)) and LayerMatrix.fits(nn.ConvTranspose1d(2, 2, 1))
    assert not LayerMatrix.fits(normed) and not LayerMatrix.fits(nn.LSTM(2, 2)) and not LayerMatrix.fits(nn.ReLU())


# ------------------------------------------------------------------------------------------------------------ moments


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 3), st.integers(0, 10**6))
def test_moments_of_parts_merge_into_those_of_the_whole(sizes: list[int], groups: int, seed: int) -> None:
    rows = torch.randn(groups, sum(sizes), 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    first, *others = (Moments.of(part) for part in rows.split(sizes, 1))
    merged = first
    for each in others:
        merged = merged.merge(each)
    centred = rows - rows.mean(1, keepdim=True)
    assert merged.count == sum(sizes)
    assert torch.allclose(merged.mean, rows.mean(1), atol=1e-12)
    assert torch.allclose(merged.square, rows.mT @ rows, atol=1e-11)
    assert torch.allclose(merged.covariance, centred.mT @ centred / sum(sizes), atol=1e-11)


def test_moments_in_single_precision_of_values_far_from_zero() -> None:
    torch.manual_seed(0)
    rows = torch.randn(2, 4000, 5) + 1000.0
    expected = torch.stack([torch.cov(each.double().T, correction=0) for each in rows])
    found = Moments.of(rows[:, :1500]).merge(Moments.of(rows[:, 1500:])).covariance
    assert torch.allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_moments_in_half_precision_do_not_overflow(dtype: torch.dtype) -> None:
    rows = (torch.randn(1, 8000, 3) * 10 + 20).to(dtype)
    wide = rows.double()
    assert torch.allclose(sum_products(rows, rows), wide.mT @ wide, rtol=1e-4)


def moments_of(layer: Any, x: Tensor, gain: Tensor) -> LayerMoments:
    matrix, made = LayerMatrix(layer), layer(x).detach()
    rows = matrix.read(x, matrix.sample(made, made.numel(), ""))
    return LayerMoments(Moments.of(rows), gain, matrix.taps)


@pytest.mark.parametrize(
    ("layer", "inputs", "outputs"),
    [
        (nn.Linear(6, 5), [0, 2, 5], [1, 4]),
        (nn.Linear(6, 5), None, [1, 4]),
        (nn.Conv2d(6, 4, 3), [1, 2, 3, 4], None),
        (nn.Conv2d(6, 4, 3, groups=2), [0, 2, 3, 4], [1, 3]),
        (nn.Conv2d(6, 4, 3, groups=2), [3, 4, 5], [2, 3]),  # the first group is gone
        (nn.Conv2d(4, 8, 3, groups=4), [1, 3], [2, 3, 6, 7]),
        (nn.ConvTranspose2d(6, 4, 2, groups=2), [0, 1, 3, 4], [0, 2]),
    ],
)
def test_kept_moments_equal_those_of_the_smaller_layer(
    layer: Any, inputs: list[int] | None, outputs: list[int] | None
) -> None:
    torch.manual_seed(0)
    layer = copy.deepcopy(layer).double()
    matrix = LayerMatrix(layer)
    x = torch.randn(*((9, 6) if isinstance(layer, nn.Linear) else (2, layer.in_channels, 5, 6)), dtype=torch.float64)
    gain = torch.rand(matrix.groups, matrix.outputs, dtype=torch.float64)
    kept = moments_of(layer, x, gain).keep(
        *(None if each is None else torch.tensor(each) for each in (inputs, outputs))
    )
    read = list(range(x.shape[1])) if inputs is None else inputs
    made = list(range(matrix.groups * matrix.outputs)) if outputs is None else outputs
    groups = len({position // matrix.outputs for position in made})
    if isinstance(layer, nn.Linear):
        small: Any = nn.Linear(len(read), len(made))
    else:
        small = type(layer)(len(read), len(made), layer.kernel_size, groups=groups)
    expected = moments_of(small.double(), x[:, read], gain.flatten()[made].reshape(groups, -1))
    assert kept is not None and kept.moments.count == expected.moments.count
    assert torch.allclose(kept.moments.total, expected.moments.total)
    assert torch.allclose(kept.moments.square, expected.moments.square)
    assert torch.equal(kept.gain, expected.gain) and kept.taps == expected.taps


def test_moments_of_groups_that_keep_different_numbers_are_let_go() -> None:
    seen = moments_of(nn.Conv2d(6, 4, 1, groups=2), torch.randn(2, 6, 3, 3), torch.ones(2, 2).double())
    assert seen.keep(torch.tensor([0, 1, 3]), None) is None
    assert seen.keep(torch.tensor([], dtype=torch.int64), None) is None


def test_gains_of_two_passes_are_averaged_over_rows() -> None:
    layer = nn.Linear(2, 1)
    first = moments_of(layer, torch.randn(30, 2), torch.tensor([[1.0]]).double())
    merged = first.merge(moments_of(layer, torch.randn(10, 2), torch.tensor([[5.0]]).double()))
    assert merged.gain.item() == pytest.approx(2.0) and merged.moments.count == 40
