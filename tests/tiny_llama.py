"""A small Llama of the tests' own, and readers for the files of llama2.c: a trained network and its tokens."""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Sizes:
    """How large a Llama is."""

    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    length: int


class RmsNorm(nn.Module):
    """Computed in float32 whatever comes in, as Llama does."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)).type_as(x) * self.weight


class Attention(nn.Module):
    """Several query heads read one key head; neighbouring channels are turned by the place of their token."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = sizes.heads, sizes.kv_heads, sizes.dim // sizes.heads
        self.q = nn.Linear(sizes.dim, self.heads * self.head_dim, bias=False)
        self.k = nn.Linear(sizes.dim, self.kv_heads * self.head_dim, bias=False)
        self.v = nn.Linear(sizes.dim, self.kv_heads * self.head_dim, bias=False)
        self.o = nn.Linear(self.heads * self.head_dim, sizes.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        n, t, _ = x.shape

        def turn(x: Tensor, heads: int) -> Tensor:
            a, b = x.view(n, t, heads, self.head_dim // 2, 2).transpose(1, 2).unbind(-1)
            return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)

        q, k = turn(self.q(x), self.heads), turn(self.k(x), self.kv_heads)
        v = self.v(x).view(n, t, self.kv_heads, self.head_dim).transpose(1, 2)
        k, v = (each.repeat_interleave(self.heads // self.kv_heads, 1) for each in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(y.transpose(1, 2).reshape(n, t, self.heads * self.head_dim))


class Block(nn.Module):
    """Attention and a gated layer, each normalised before it is added."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention_norm, self.attention = RmsNorm(sizes.dim), Attention(sizes)
        self.ffn_norm = RmsNorm(sizes.dim)
        self.w1, self.w3 = (nn.Linear(sizes.dim, sizes.hidden, bias=False) for _ in range(2))
        self.w2 = nn.Linear(sizes.hidden, sizes.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        y = self.ffn_norm(x)
        return x + self.w2(F.silu(self.w1(y)) * self.w3(y))


class Llama(nn.Module):
    """Touvron et al. 2023, with the embedding as the head's weight too unless told otherwise."""

    cos: Tensor
    sin: Tensor

    def __init__(self, sizes: Sizes, *, tied: bool = True, theta: float = 10000.0) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(sizes.vocabulary, sizes.dim), RmsNorm(sizes.dim)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.head = nn.Linear(sizes.dim, sizes.vocabulary, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        half = sizes.dim // sizes.heads // 2
        angles = torch.outer(torch.arange(sizes.length).float(), theta ** -(torch.arange(half).float() / half))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]])
        return self.head(self.norm(x))


def load_llama2c(path: Path) -> Llama:
    """A network from the first format of llama2.c: seven numbers, then the weights one kind after the other."""
    content = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocabulary, length = struct.unpack("7i", content[:28])
    model = Llama(Sizes(dim, hidden, layers, heads, kv_heads, abs(vocabulary), length), tied=vocabulary > 0)
    numbers = torch.from_numpy(np.frombuffer(content, np.float32, offset=28).copy())
    read = 0
    kinds = ["attention_norm", *(f"attention.{name}" for name in "qkvo"), "ffn_norm", "w1", "w2", "w3"]
    names = [f"blocks.{layer}.{kind}.weight" for kind in kinds for layer in range(layers)]
    with torch.no_grad():
        for name in ["embed.weight", *names, "norm.weight"]:
            parameter = model.get_parameter(name)
            parameter.copy_(numbers[read : read + parameter.numel()].view_as(parameter))
            read += parameter.numel()
        for table in (model.cos, model.sin):  # the file has them too
            torch.testing.assert_close(numbers[read : read + table.numel()].view_as(table), table, atol=1e-4, rtol=0)
            read += table.numel()
        if vocabulary < 0:
            model.head.weight.copy_(numbers[read:].view_as(model.head.weight))
            read = len(numbers)
    assert read == len(numbers), f"{path} has {len(numbers)} numbers, {read} were expected"
    return model.eval()


class Tokens:
    """The tokens of llama2.c: pieces of text with a score; the best-scored neighbours are joined first."""

    def __init__(self, path: Path) -> None:
        content, place, self.scores = path.read_bytes(), 4, {}
        self.pieces: list[bytes] = []
        while place < len(content):
            score, size = struct.unpack_from("fi", content, place)
            piece = content[place + 8 : place + 8 + size]
            self.scores.setdefault(piece, (score, len(self.pieces)))
            self.pieces.append(piece)
            place += 8 + size

    def encode(self, text: str) -> list[int]:
        """The numbers of a text's tokens, the mark of a beginning before them."""
        pieces: list[bytes] = []
        for letter in f" {text}":
            known = letter.encode() in self.scores
            pieces += [letter.encode()] if known else [f"<0x{byte:02X}>".encode() for byte in letter.encode()]
        while True:
            joined = [a + b for a, b in itertools.pairwise(pieces)]
            known = [(self.scores[piece][0], -place) for place, piece in enumerate(joined) if piece in self.scores]
            if not known:
                return [1, *(self.scores[piece][1] for piece in pieces)]
            place = -max(known)[1]
            pieces[place : place + 2] = [joined[place]]
