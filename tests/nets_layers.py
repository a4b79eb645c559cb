"""Small networks around layers that are traced as one operation (recurrent ones); more cases of `nets.py`."""

from __future__ import annotations

from typing import Any

import torch
from nets import case, conv, image, tokens, words
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


@case(tokens())
class LstmDeep(nn.Module):
    """Three layers in both directions; every output is read."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 7)
        self.lstm = nn.LSTM(7, 6, num_layers=3, bidirectional=True, batch_first=True, dropout=0.3)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(torch.tanh(self.embed(x)))[0])


@case(tokens())
class LstmProjected(nn.Module):
    """Two layers in both directions that hand on fewer numbers than they compute; the last states are read too."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 9, num_layers=2, bidirectional=True, proj_size=4)
        self.head, self.state, self.cell = nn.Linear(8, 4), nn.Linear(4, 4), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x, (hidden, cell) = self.lstm(x.transpose(0, 1))
        return self.head(x[-1]) + self.state(hidden[3]) + self.cell(cell[0])


@case(tokens())
class LstmStates(nn.Module):
    """The first states come from layers of their own, and only the last states are read."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.cell = nn.Linear(6, 8), nn.Linear(6, 8)
        self.lstm, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        first = (torch.tanh(self.hidden(x[:, 0]))[None], self.cell(x[:, 1])[None])
        _, (hidden, cell) = self.lstm(x, first)
        return self.head(torch.cat([hidden[-1], cell[-1]], 1))


@case(tokens())
class GruStates(nn.Module):
    """One layer makes the first states of both directions; the last ones of both are laid side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.gru = nn.Linear(6, 16), nn.GRU(6, 8, bidirectional=True, batch_first=True, bias=False)
        self.head, self.join = nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.tanh(self.start(x[:, 0])).view(len(x), 2, -1).transpose(0, 1).contiguous()
        x, last = self.gru(x, first)
        return self.head(x.mean(1)) + self.join(torch.cat([last[0], last[1]], 1))


@case(lambda batch: torch.randn(5 * batch, 6))
class RnnUnbatched(nn.Module):
    """One sequence without a batch dimension, with a given first state; two layers of the plain kind."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.embed = nn.Linear(6, 8), nn.Linear(6, 7)
        self.rnn, self.head = nn.RNN(7, 8, num_layers=2, nonlinearity="relu"), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        first = self.start(x[0])
        x, last = self.rnn(self.embed(x), torch.stack([first, first.tanh()]))
        return self.head(x) + self.head(last[0])


@case(lambda batch: (torch.randn(batch, 5, 6), torch.arange(batch) % 5 + 1))
class LstmPacked(nn.Module):
    """Sequences of unequal length, packed and padded again."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Linear(6, 7), nn.LSTM(7, 8, num_layers=2, bidirectional=True, batch_first=True)
        self.head, self.last = nn.Linear(16, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embed(x), lengths.cpu(), batch_first=True, enforce_sorted=False)
        packed, (hidden, _) = self.lstm(packed)
        x, _ = pad_packed_sequence(packed, batch_first=True, total_length=5)
        return self.head(x).mean(1) + self.last(hidden[-1])


@case(tokens())
class LstmCells(nn.Module):
    """Two stacked cells called in a loop, the first of them with its own first state."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.empty(1, 8))
        self.first, self.second, self.head = nn.LSTMCell(6, 8), nn.LSTMCell(8, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        low = (self.start.expand(len(x), -1), torch.tanh(self.start).expand(len(x), -1))
        high = None
        for step in x.unbind(1):
            low = self.first(step, low)
            high = self.second(F.dropout(low[0], 0.1, self.training), high)
        assert high is not None
        return self.head(high[0])


@case(tokens())
class CellsOfTwoKinds(nn.Module):
    """A GRU cell that reads a plain cell, and what it remembers is added to what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.RNNCell(6, 8), nn.GRUCell(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        low, high = None, None
        for step in x.unbind(1):
            low = self.first(step, low)
            high = self.second(low, high) + low
        return self.head(high)


@case(lambda batch: (torch.randn(batch, 5, 6), torch.arange(batch * 4).reshape(batch, 4) % 11))
class Translator(nn.Module):
    """An encoder and a decoder, the one's last states the other's first; the decoder looks back at the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(6, 8, batch_first=True)
        self.words, self.decoder = nn.Embedding(11, 7), nn.LSTM(7, 8, batch_first=True)
        self.query, self.mix, self.head = nn.Linear(8, 8), nn.Linear(16, 9), nn.Linear(9, 11)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, states = self.encoder(source)
        x, _ = self.decoder(self.words(target), states)
        weights = (self.query(x) @ memory.transpose(1, 2)).softmax(-1)
        return self.head(torch.tanh(self.mix(torch.cat([x, weights @ memory], -1))))


@case(image())
class ConvolutionsThenLstm(nn.Module):
    """Text recognition: the columns of an image are a sequence of flattened channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(3, 6), conv(6, 5, stride=2)
        self.lstm, self.head = nn.LSTM(20, 7, bidirectional=True), nn.Linear(14, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv2(torch.tanh(self.conv1(x))))
        return self.head(self.lstm(x.flatten(1, 2).permute(2, 0, 1))[0])


@case(words())
class LanguageModel(nn.Module):
    """The embedding is the head's weight too, so the last layer's units are the embedding's channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(11, 8), nn.LSTM(8, 8, num_layers=2, batch_first=True, dropout=0.2)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x)[0]

    def step(self, x: Tensor, states: Any = None) -> tuple[Tensor, Any]:
        """The scores of the next word, and the states to go on from."""
        x, states = self.lstm(self.embed(x), states)
        return self.head(x), states
