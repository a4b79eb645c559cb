"""Reference networks: CIFAR ResNets with option-A shortcuts, torchvision's ResNet-18 and a small ViT for CIFAR, digits.

Weights load from safetensors files, which hold tensors and nothing that could run.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import ResNet, resnet18

from cleanai.errors import InputError

__all__ = [
    "CifarBlock",
    "CifarResNet",
    "CifarViT",
    "DigitsResNet",
    "EncoderBlock",
    "PaddedShortcut",
    "ProjectedBlock",
    "SelfAttention",
    "cifar_resnet",
    "cifar_vit",
    "digits_resnet",
    "load_weights",
    "resnet18_cifar",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "use_small_stem",
]

CIFAR_WIDTHS = (16, 32, 64)


class PaddedShortcut(nn.Module):
    """The parameter-free shortcut of He et al. (2016), option A: every second pixel, new channels filled with zeros.

    Shapes: (N, C, H, W) to (N, zeros_before + C + zeros_after, ceil(H / 2), ceil(W / 2)).

    Args:
        zeros_before: channels of zeros before those that come in.
        zeros_after: channels of zeros behind them.

    Example:
        >>> PaddedShortcut(8, 8)(torch.ones(1, 16, 32, 32)).shape
        torch.Size([1, 32, 16, 16])
    """

    def __init__(self, zeros_before: int, zeros_after: int) -> None:
        super().__init__()
        self.zeros_before = zeros_before
        self.zeros_after = zeros_after

    def forward(self, x: Tensor) -> Tensor:
        """Every second pixel of (N, C, H, W), with zeros for the channels that are new."""
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.zeros_before, self.zeros_after))

    def extra_repr(self) -> str:
        """What ``print(model)`` shows in the brackets."""
        return f"zeros_before={self.zeros_before}, zeros_after={self.zeros_after}"


class CifarBlock(nn.Module):
    """Two 3×3 convolutions with BatchNorm and a shortcut around them, the block of `CifarResNet`.

    The shortcut is a `PaddedShortcut` where the number of channels or the size changes.
    Shapes: (N, in_channels, H, W) to (N, channels, H / stride, W / stride).

    Args:
        in_channels: channels that come in.
        channels: channels that go out; at least ``in_channels``.
        stride: of the first convolution: 1, or 2 with a shortcut that leaves out every second pixel.

    Example:
        >>> CifarBlock(16, 32, stride=2)(torch.zeros(1, 16, 32, 32)).shape
        torch.Size([1, 32, 16, 16])
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            added = channels - in_channels
            self.shortcut = PaddedShortcut(zeros_before=added // 2, zeros_after=added - added // 2)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both ways behind a ReLU: (N, channels, H / stride, W / stride)."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return functional.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """The CIFAR ResNet of He et al. (2016), section 4.2: three stages of n blocks, 6n + 2 layers, (N, 3, 32, 32) in.

    The stages have 16, 32 and 64 channels and 32×32, 16×16 and 8×8 pixels; the paper is "Deep residual learning for
    image recognition". `cifar_resnet` makes one by its depth.

    Args:
        blocks_per_stage: n.
        num_classes: scores that go out: (N, num_classes).

    Example:
        >>> sum(weight.numel() for weight in CifarResNet(3).parameters())
        269722
    """

    def __init__(self, blocks_per_stage: int, num_classes: int = 10) -> None:
        super().__init__()
        narrow, middle, wide = CIFAR_WIDTHS
        self.conv1 = nn.Conv2d(3, narrow, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(narrow)
        self.layer1 = _stack_blocks(narrow, narrow, blocks_per_stage, stride=1)
        self.layer2 = _stack_blocks(narrow, middle, blocks_per_stage, stride=2)
        self.layer3 = _stack_blocks(middle, wide, blocks_per_stage, stride=2)
        self.linear = nn.Linear(wide, num_classes)
        _initialise_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """The logits (N, num_classes) of images (N, 3, H, W)."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(out.mean(dim=(2, 3)))


def cifar_resnet(depth: int, num_classes: int = 10) -> CifarResNet:
    """An untrained CIFAR ResNet of depth 6n + 2 (20, 32, 44, 56, 110, ...) with option-A shortcuts.

    State-dict keys: ``conv1``, ``bn1``, ``layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}``, ``linear``.

    Args:
        depth: layers with weights, counted as the paper does (He et al., 2016, section 4.2).
        num_classes: scores that go out.

    Raises:
        InputError: if the depth is not 6n + 2 with n >= 1.

    Example:
        >>> import torch
        >>> cifar_resnet(20)(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """
    if depth < 8 or (depth - 2) % 6:
        raise InputError(f"cifar_resnet: depth must be 6n + 2 with n >= 1 (8, 14, 20, 32, 44, 56, ...), got {depth}.")
    return CifarResNet((depth - 2) // 6, num_classes)


def resnet20(num_classes: int = 10) -> CifarResNet:
    """An untrained CIFAR ResNet-20: 269,722 parameters with ten classes; see `cifar_resnet`.

    Example:
        >>> sum(weight.numel() for weight in resnet20().parameters())
        269722
    """
    return cifar_resnet(20, num_classes)


def resnet32(num_classes: int = 10) -> CifarResNet:
    """An untrained CIFAR ResNet-32: 464,154 parameters with ten classes; see `cifar_resnet`.

    Example:
        >>> sum(weight.numel() for weight in resnet32().parameters())
        464154
    """
    return cifar_resnet(32, num_classes)


def resnet44(num_classes: int = 10) -> CifarResNet:
    """An untrained CIFAR ResNet-44: 658,586 parameters with ten classes; see `cifar_resnet`.

    Example:
        >>> sum(weight.numel() for weight in resnet44().parameters())
        658586
    """
    return cifar_resnet(44, num_classes)


def resnet56(num_classes: int = 10) -> CifarResNet:
    """An untrained CIFAR ResNet-56: 853,018 parameters with ten classes; see `cifar_resnet`.

    Example:
        >>> sum(weight.numel() for weight in resnet56().parameters())
        853018
    """
    return cifar_resnet(56, num_classes)


def resnet18_cifar(num_classes: int = 10) -> nn.Module:
    """torchvision's ResNet-18 for 32×32 images, untrained: 3×3 stem of stride 1, no max-pool, 11,173,962 parameters.

    Args:
        num_classes: scores that go out: (N, 3, 32, 32) to (N, num_classes).

    Example:
        >>> import torch
        >>> resnet18_cifar()(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """
    return use_small_stem(resnet18(num_classes=num_classes))


def use_small_stem(model: ResNet) -> ResNet:
    """The same torchvision ResNet, changed in place for 32×32 images: 3×3 stem of stride 1, no max-pool.

    The new stem is initialised as torchvision's own; a stem of stride 2 and the pooling would leave 8×8 pixels.

    Example:
        >>> model = use_small_stem(resnet18())
        >>> model.conv1.kernel_size, model.conv1.stride
        ((3, 3), (1, 1))
    """
    model.conv1 = nn.Conv2d(3, model.conv1.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()  # ty: ignore[invalid-assignment]  (its declared type is what it starts with)
    return model


class ProjectedBlock(nn.Module):
    """Two 3×3 convolutions with a 1×1 convolution as shortcut wherever the shape changes (option B).

    The block of `DigitsResNet`. Shapes: (N, in_channels, H, W) to (N, channels, H / stride, W / stride).

    Args:
        in_channels: channels that come in.
        channels: channels that go out.
        stride: of the first convolution and of the shortcut.

    Example:
        >>> ProjectedBlock(4, 8, stride=2)(torch.zeros(1, 4, 8, 8)).shape
        torch.Size([1, 8, 4, 4])
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            projection = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both ways behind a ReLU: (N, channels, H / stride, W / stride)."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return functional.relu(out + self.shortcut(x))


class DigitsResNet(nn.Module):
    """A small residual network for scikit-learn's digits: (N, 1, 8, 8) in, (N, 10) out, three blocks.

    Args:
        width: channels of the first block; the other two have twice as many.
        num_classes: scores that go out.

    Example:
        >>> sum(weight.numel() for weight in DigitsResNet(width=16).parameters())
        38266
    """

    def __init__(self, width: int = 16, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.block1 = ProjectedBlock(width, width)
        self.block2 = ProjectedBlock(width, 2 * width, stride=2)
        self.block3 = ProjectedBlock(2 * width, 2 * width)
        self.linear = nn.Linear(2 * width, num_classes)
        _initialise_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """The logits (N, num_classes) of images (N, 1, H, W)."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.block3(self.block2(self.block1(out)))
        return self.linear(out.mean(dim=(2, 3)))


def digits_resnet(width: int = 16) -> DigitsResNet:
    """An untrained residual network for 1×8×8 digits, with BatchNorm and one downsampling 1×1 shortcut.

    Args:
        width: channels of the first block; 16 give 38,266 parameters.

    Example:
        >>> import torch
        >>> digits_resnet()(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    return DigitsResNet(width)


class SelfAttention(nn.Module):
    """Multi-head self-attention with projections of their own: softmax(q kᵀ / √d) v in each head.

    It is that of Vaswani et al., "Attention is all you need" (2017), with q, k and v as layers apart. The factor 1/√d
    is that of the untouched network: channels that are removed from the heads do not change it.

    Shapes: (N, tokens, dim) to (N, tokens, dim).

    Args:
        dim: channels of a token.
        num_heads: heads; d = dim / num_heads channels each.

    Example:
        >>> SelfAttention(dim=8, num_heads=2)(torch.zeros(1, 5, 8)).shape
        torch.Size([1, 5, 8])
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """What the tokens (N, tokens, dim) gather from one another: (N, tokens, dim)."""
        query, key, value = (self._split_heads(layer(x)) for layer in (self.query, self.key, self.value))
        weights = torch.softmax(query @ key.transpose(-2, -1) * self.scale, dim=-1)
        return self.output((weights @ value).transpose(1, 2).flatten(2))

    def _split_heads(self, x: Tensor) -> Tensor:
        """(N, tokens, channels) to (N, heads, tokens, channels of a head)."""
        return x.reshape(x.shape[0], x.shape[1], self.num_heads, -1).transpose(1, 2)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows in the brackets."""
        return f"num_heads={self.num_heads}"


class EncoderBlock(nn.Module):
    """Pre-norm transformer block: attention and a two-layer perceptron, each behind a LayerNorm with a way around it.

    The block of `CifarViT`. Shapes: (N, tokens, dim) to (N, tokens, dim).

    Args:
        dim: channels of a token.
        num_heads: heads of the attention.
        hidden: channels inside the perceptron.

    Example:
        >>> EncoderBlock(dim=8, num_heads=2, hidden=16)(torch.zeros(1, 5, 8)).shape
        torch.Size([1, 5, 8])
    """

    def __init__(self, dim: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """The tokens (N, tokens, dim) with what attention and perceptron add to them."""
        x = x + self.attention(self.norm1(x))
        return x + self.linear2(functional.gelu(self.linear1(self.norm2(x))))


class CifarViT(nn.Module):
    """A vision transformer for CIFAR (Dosovitskiy et al., 2021), (N, 3, 32, 32) in: 64 tokens of 4×4 pixels.

    The tokens come from two 3×3 convolutions of stride 2, with which a short training suffices (Xiao et al., "Early
    convolutions help transformers see better", 2021); the classifier looks at the mean of all tokens. `cifar_vit`
    makes one with usual sizes.

    Args:
        dim: channels of a token.
        depth: number of blocks.
        num_heads: heads of every attention.
        mlp_ratio: hidden channels of the perceptrons, in multiples of ``dim``.
        num_classes: scores that go out: (N, num_classes).

    Example:
        >>> CifarViT(dim=8, depth=1, num_heads=2, mlp_ratio=2, num_classes=10)(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """

    def __init__(self, dim: int, depth: int, num_heads: int, mlp_ratio: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, dim // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(dim // 2)
        self.conv2 = nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1)
        self.position = nn.Parameter(torch.empty(1, 64, dim).normal_(std=0.02))
        self.blocks = nn.Sequential(*(EncoderBlock(dim, num_heads, mlp_ratio * dim) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """The logits (N, num_classes) of images (N, 3, 32, 32)."""
        patches = self.conv2(functional.relu(self.bn1(self.conv1(x))))
        tokens = patches.flatten(2).transpose(1, 2) + self.position
        return self.linear(self.norm(self.blocks(tokens)).mean(dim=1))


def cifar_vit(dim: int = 96, depth: int = 6, num_heads: int = 4, mlp_ratio: int = 2, num_classes: int = 10) -> CifarViT:
    """An untrained small vision transformer for 32×32 images: 498,970 parameters as it is by default.

    ``python -m benchmarks.train_vit`` trains it on CIFAR-10.

    Args:
        dim: channels of a token; even, and a multiple of ``num_heads``.
        depth: number of blocks.
        num_heads: heads of every attention.
        mlp_ratio: hidden channels of the perceptrons, in multiples of ``dim``.
        num_classes: scores that go out.

    Raises:
        InputError: if ``dim`` cannot be divided by 2 and by ``num_heads``.

    Example:
        >>> cifar_vit()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    if dim < 2 or num_heads < 1 or dim % 2 or dim % num_heads:
        raise InputError(f"cifar_vit: dim must be a multiple of 2 and of num_heads, got {dim} and {num_heads}.")
    return CifarViT(dim, depth, num_heads, mlp_ratio, num_classes)


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """The same model with the weights of a safetensors file loaded; nothing in the file is executed.

    Every tensor must fit by name and shape. BatchNorm's ``num_batches_tracked`` may be missing, as in files converted
    from old checkpoints.

    Args:
        model: changed in place.
        path: the file, such as `cleanai.data.trained_weights_path` finds.

    Raises:
        InputError: if the file is missing or no safetensors file, or if names or shapes differ from the model's; the
            model is unchanged then.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "digits.safetensors"
        ...     save_file(digits_resnet(4).state_dict(), path)
        ...     model = load_weights(digits_resnet(4), path)
        >>> model.conv1.weight.shape
        torch.Size([4, 1, 3, 3])
        >>> load_weights(resnet20(), "no_such_file.safetensors")
        Traceback (most recent call last):
            ...
        cleanai.errors.InputError: load_weights: there is no file no_such_file.safetensors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"load_weights: there is no file {path}.")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise InputError(
            f"load_weights: {path} is not a safetensors file ({error}). Pickled checkpoints are not read, since they "
            "can run code; convert one with torch.load(..., weights_only=True) and safetensors.torch.save_file."
        ) from error
    own = model.state_dict()
    problems = _list_misfits(own, tensors)
    if problems:
        raise InputError(f"load_weights: {path} does not fit {type(model).__name__}: " + "; ".join(problems))
    model.load_state_dict({**own, **tensors})
    return model


def _list_misfits(own: dict[str, Tensor], tensors: dict[str, Tensor]) -> list[str]:
    missing = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    unknown = [name for name in tensors if name not in own]
    reshaped = [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    found = [("missing", missing), ("not in the model", unknown), ("of another shape", reshaped)]
    return [f"{len(names)} {what} ({_shorten(names)})" for what, names in found if names]


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _stack_blocks(in_channels: int, channels: int, count: int, stride: int) -> nn.Sequential:
    first = CifarBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(CifarBlock(channels, channels, stride=1) for _ in range(count - 1)))


def _initialise_convolutions(model: nn.Module) -> None:
    """He initialisation, fan in, as the paper of these networks uses it."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.in_channels * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_in))
