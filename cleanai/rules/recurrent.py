"""Recurrent layers: LSTM, GRU and RNN, stacked, in both directions, with projections; and their cells."""

from __future__ import annotations

from typing import Any

from torch import nn

from cleanai.layers import count_gates
from cleanai.registry import LayerRule, add_own_rule
from cleanai.rules.layer import Channels, Links


def _tie_gates(links: Links, gates: int, suffix: str, hidden: Channels, back: Channels, incoming: Channels) -> None:
    """One layer in one direction: every gate has a row for each hidden unit; what comes back are their columns."""
    links.contract(links.tensor(f"weight_ih{suffix}").dim(1), incoming)
    links.contract(links.tensor(f"weight_hh{suffix}").dim(1), back)
    for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        if f"{kind}{suffix}" in links:
            for gate in links.tensor(f"{kind}{suffix}").dim(0).chunk(gates):
                links.tie(gate, hidden)


def _connect_recurrent(links: Links) -> None:
    """Gates as in Hochreiter & Schmidhuber 1997 (LSTM) and Cho et al. 2014 (GRU), projections as in Sak et al. 2014.

    torch keeps one hidden size for all layers and directions: each loses equally many units, not the same ones.
    """
    layer: Any = links.module
    gates, projected = count_gates(layer), bool(layer.proj_size)
    sequence, states = links.output(0), links.outputs[1:]
    directions = 2 if layer.bidirectional else 1
    incoming = links.input(0).dim(-1)
    hidden_of, back_of = [], []
    for number in range(layer.num_layers):
        outgoing = []
        for direction in range(directions):
            suffix = f"_l{number}{'_reverse' if direction else ''}"
            hidden = links.tensor(f"weight_hh{suffix}").dim(0).chunk(gates)[0]
            back = hidden
            if projected:
                weight = links.tensor(f"weight_hr{suffix}")
                links.contract(weight.dim(1), hidden)
                back = weight.dim(0)
            _tie_gates(links, gates, suffix, hidden, back, incoming)
            hidden_of.append(hidden)
            back_of.append(back)
            outgoing.append(back)
        incoming = links.join(*outgoing) if directions == 2 else outgoing[0]
    links.tie(sequence.dim(-1), incoming)
    links.keep_equal(*hidden_of)
    if projected:
        links.keep_equal(*back_of)
    # The last states, and the first ones if they were given: a row of units for each layer and direction.
    cells = hidden_of if isinstance(layer, nn.LSTM) else back_of
    for given in (states, links.inputs[1:]):
        for tensor, rows in zip(given, (back_of, cells), strict=False):
            links.tie_rows(tensor, rows)


def _connect_cell(links: Links) -> None:
    layer: Any = links.module
    hidden = links.tensor("weight_hh").dim(1)
    _tie_gates(links, count_gates(layer), "", hidden, hidden, links.input(0).dim(-1))
    for tensor in (*links.inputs[1:], *links.outputs):
        links.tie(tensor.dim(-1), hidden)


for _kind in (nn.LSTM, nn.GRU, nn.RNN):
    add_own_rule(_kind, LayerRule(_connect_recurrent))
for _kind in (nn.LSTMCell, nn.GRUCell, nn.RNNCell):
    add_own_rule(_kind, LayerRule(_connect_cell))
