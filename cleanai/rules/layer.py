"""Rules for whole layers and for operations of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from cleanai.errors import InputError
from cleanai.fields import IntArray, Labelled, Shape
from cleanai.registry import LayerRule, add_layer_rule, find_layer_rule, remove_layer_rule
from cleanai.rules.context import RULES, Context, Inputs, Rule, freeze_all, handles, mark_contracted
from cleanai.trace import Operation


class Channels:
    """The indices of one dimension of a tensor, to be tied to those of another.

    Slices like a list, and `chunk` cuts it into equal parts. Channels that are not known (they belong to a constant, or
    to a dimension that cannot be pruned) are passed on as such: what is tied to them is frozen.

    `Tensors.dim` makes them, from the rule's ``links``, the ``labels`` of the indices (None: not known), their number
    (``size``) and the tensor and dimension that they are the whole of (``origin``).

    Example:
        >>> from cleanai import StructuredPruner
        >>> class Gate(nn.Module):  # half of the channels scale the other half
        ...     def forward(self, x):
        ...         value, gate = x.chunk(2, dim=1)
        ...         return value * gate.sigmoid()
        >>> def connect(links):
        ...     value, gate = links.input().dim(1).chunk(2)  # Channels, like links.input().dim(1)[:8]
        ...     links.tie(value, gate, links.output().dim(1))
        >>> register_rule(Gate, connect)
        >>> net = nn.Sequential(nn.Linear(3, 16), Gate(), nn.Linear(8, 2))
        >>> StructuredPruner(net, torch.randn(1, 3), pruning_ratio=0.5).prune()[0].out_features
        8
        >>> unregister_rule(Gate)
    """

    def __init__(
        self, links: Links, labels: IntArray | None, size: int, origin: tuple[Labelled, int] | None = None
    ) -> None:
        self._links = links
        self._labels = labels
        self._size = size
        self._origin = origin  # of a whole dimension: the tensor and which one

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> Channels:
        labels = None if self._labels is None else self._labels[part]
        return Channels(self._links, labels, len(range(*part.indices(self._size))))

    def __iter__(self) -> Iterator[Channels]:
        raise TypeError("channels are not iterated over one by one: take a slice, or chunk(n)")

    def chunk(self, parts: int) -> list[Channels]:
        """So many equal ``parts``, in order.

        Raises:
            ValueError: the channels cannot be cut into that many.
        """
        if self._size % parts:
            raise ValueError(f"{self._size} channels cannot be cut into {parts} equal parts")
        step = self._size // parts
        return [self[start : start + step] for start in range(0, self._size, step)]


class Tensors:
    """One tensor of a layer: an input, an output, or a parameter or buffer; ``dim`` gives its channels.

    `Links` makes it, from itself (``links``), the labelled ``value`` and the ``name`` that errors use.

    Example:
        >>> from cleanai import StructuredPruner
        >>> class Double(nn.Module):
        ...     def forward(self, x):
        ...         return 2 * x
        >>> shapes = []
        >>> def connect(links):
        ...     shapes.append(links.input().shape)
        ...     links.tie(links.input().dim(-1), links.output().dim(-1))
        >>> register_rule(Double, connect)
        >>> net = nn.Sequential(nn.Linear(3, 8), Double(), nn.Linear(8, 2))
        >>> [group.name for group in StructuredPruner(net, torch.randn(1, 3)).groups], shapes[0]
        (['0'], (1, 8))
        >>> unregister_rule(Double)
    """

    def __init__(self, links: Links, value: Labelled, name: str) -> None:
        self._links = links
        self._value = value
        self._name = name
        self._dims: dict[int, Channels] = {}

    @property
    def shape(self) -> Shape:
        """The tensor's shape in the trace."""
        return self._value.shape

    def dim(self, dim: int) -> Channels:
        """The indices of a dimension, which may be counted from the end.

        Raises:
            IndexError: the tensor has no such dimension.
        """
        rank = len(self.shape)
        if not -rank <= dim < rank:
            raise IndexError(f"{self._name} has {rank} dimensions; there is no dimension {dim}")
        dim %= rank
        if dim not in self._dims:
            self._dims[dim] = self._links.take(self._value, dim)
        return self._dims[dim]


class Links:
    """What a rule sees of a layer: its labelled tensors, and the ways to say what they have to do with each other.

    Whatever a rule does not tie stays as it is: it is never pruned, and named in the report. Each call of the layer in
    a trace gets its own, made from the rules' ``context``, the operation (``op``) and its labelled ``inputs``, and
    ``connect`` of `register_rule` is called with it.

    Attributes:
        module: the layer; None in a rule for an operation.
        where: the layer or operation and its place in the model, as errors and reports name it.

    Example:
        >>> from cleanai import StructuredPruner
        >>> class Affine(nn.Module):  # y = x * scale + shift
        ...     def __init__(self, width):
        ...         super().__init__()
        ...         self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        ...
        ...     def forward(self, x):
        ...         return x * self.scale + self.shift
        >>> def connect(links):
        ...     for name in ("scale", "shift"):
        ...         links.tie(links.input().dim(-1), links.tensor(name).dim(0), links.output().dim(-1))
        >>> register_rule(Affine, connect)
        >>> net = nn.Sequential(nn.Linear(3, 8), Affine(8), nn.Linear(8, 2))
        >>> StructuredPruner(net, torch.randn(1, 3), pruning_ratio=0.5).prune()[1].scale.shape
        torch.Size([4])
        >>> unregister_rule(Affine)
    """

    def __init__(self, context: Context, op: Operation, inputs: Inputs) -> None:
        self.module: nn.Module | None = op.layer.module if op.layer else None
        self.where = op.where
        self._context = context
        self._op = op
        states = op.layer.states if op.layer else ()
        split = len(inputs) - len(states)
        shapes = op.layer.shapes if op.layer else tuple(v.shape for v in op.inputs if v is not None)
        self._inputs = [
            Tensors(self, value if value is not None else Labelled(shape), f"input {index} of {op.where}")
            for index, (value, shape) in enumerate(zip(inputs[:split], shapes, strict=False))
        ]
        self._values = list(inputs[:split])
        self._states = {
            name: value if value is not None else Labelled(())
            for name, value in zip(states, inputs[split:], strict=True)
        }
        self._tensors: dict[str, Tensors] = {}
        fresh = []
        for shape in op.shapes:
            fields = {}
            for axis, size in enumerate(shape):
                if size > 1:
                    fields[axis] = context.labels.new((1,) * axis + (size,) + (1,) * (len(shape) - axis - 1))
            fresh.append(Labelled(shape, fields))
        self._fresh = fresh
        self._outputs = [Tensors(self, v, f"output {i} of {op.where}") for i, v in enumerate(fresh)]
        self._tied: list[IntArray] = []

    # ------------------------------------------------------------------------------------------------- what there is

    def input(self, index: int = 0) -> Tensors:
        """The floating-point tensor number ``index`` among the layer's arguments.

        Raises:
            IndexError: there are fewer.
        """
        return self._pick(self._inputs, index, "arguments")

    @property
    def inputs(self) -> Sequence[Tensors]:
        """All floating-point tensors among the layer's arguments, in order."""
        return tuple(self._inputs)

    def output(self, index: int = 0) -> Tensors:
        """The floating-point tensor number ``index`` among the layer's results.

        Raises:
            IndexError: there are fewer.
        """
        return self._pick(self._outputs, index, "results")

    @property
    def outputs(self) -> Sequence[Tensors]:
        """All floating-point tensors among the layer's results, in order."""
        return tuple(self._outputs)

    def _pick(self, tensors: Sequence[Tensors], index: int, what: str) -> Tensors:
        if not -len(tensors) <= index < len(tensors):
            raise IndexError(f"{self.where} has {len(tensors)} floating-point {what}; there is no number {index}")
        return tensors[index]

    def tensor(self, name: str) -> Tensors:
        """A parameter or buffer of the layer, by its name inside the layer ("weight", "inner.bias").

        Raises:
            KeyError: the layer has no floating-point tensor of that name.
        """
        if name not in self._states:
            known = ", ".join(self._states) or "none"
            raise KeyError(f"{self.where} has no floating-point tensor {name!r}; there are {known}")
        if name not in self._tensors:
            self._tensors[name] = Tensors(self, self._states[name], f"{name} of {self.where}")
        return self._tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self._states

    # ------------------------------------------------------------------------------------------------ what is said

    def contract(self, *channels: Channels) -> None:
        """These ``channels`` live or die together, and the layer sums over them: an input, the columns of its weight.

        Raises:
            ValueError: they are not equally many.
        """
        for each in channels:
            if each._origin is not None:
                mark_contracted(self._context, *each._origin)
        self.tie(*channels)

    def tie(self, *channels: Channels) -> None:
        """These ``channels`` live or die together, index by index.

        Raises:
            ValueError: they are not equally many.
        """
        sizes = {len(each) for each in channels}
        if len(sizes) > 1:
            raise ValueError(f"only dimensions of the same size can be tied, not {sorted(sizes)}")
        known = [each._labels for each in channels if each._labels is not None]
        for labels in known:
            self._tied.append(labels)
            self._context.labels.unite(labels, known[0])
        if known and len(known) < len(channels):
            self._context.labels.freeze(known[0], f"{self.where} combines it with {self._context.partner}")

    def join(self, *channels: Channels) -> Channels:
        """Several runs of ``channels`` one after the other, as one dimension (a concatenation)."""
        pieces = [self._known(each) for each in channels]
        return Channels(self, np.concatenate(pieces), sum(len(piece) for piece in pieces))

    def keep_equal(self, *channels: Channels) -> None:
        """These ``channels`` may lose different indices but always equally many: code knows one number for all."""
        pieces = [self._known(each) for each in channels]
        self._context.labels.cut(np.concatenate(pieces), 0, np.cumsum([len(piece) for piece in pieces]).tolist())

    def tie_rows(self, tensor: Tensors, rows: Sequence[Channels]) -> None:
        """Row i of a ``tensor``'s first dimension has, in its last dimension, the indices ``rows[i]``."""
        stacked = np.stack([self._known(row) for row in rows])
        value, last = tensor._value, len(tensor.shape) - 1
        labels = stacked.reshape(stacked.shape[0], *(1,) * (last - 1), stacked.shape[1])
        if any(tensor is output for output in self._outputs):
            value.fields[last] = labels
        elif last in value.fields:
            self._context.labels.unite(value.fields[last], labels)
            self._tied.append(value.fields[last].ravel())
        else:
            self._context.labels.freeze(labels, f"{self.where} combines it with {self._context.partner}")
        self._tied.append(labels.ravel())

    def freeze(self, channels: Channels, reason: str) -> None:
        """These ``channels`` are never pruned, and the ``reason``, which the report gives."""
        if channels._labels is not None:
            self._context.labels.freeze(channels._labels, f"{self.where}: {reason}")

    # ---------------------------------------------------------------------------------------------------- carried out

    def _known(self, channels: Channels) -> IntArray:
        if channels._labels is not None:
            return channels._labels
        labels = self._context.labels.new((len(channels),))
        self._context.labels.freeze(labels, f"{self.where} combines it with {self._context.partner}")
        return labels

    def take(self, value: Labelled, dim: int) -> Channels:
        """The channels along one ``dim`` of a labelled ``value``, the same ones in every row."""
        labels = value.fields.get(dim)
        if labels is not None:
            labels = self._context.labels.collapse_context(labels, dim).ravel()
        return Channels(self, labels, value.shape[dim], (value, dim))

    def finish(self) -> list[Labelled]:
        """The labelled outputs, once the rule has spoken; freezes what it left out."""
        context, tied = (
            self._context,
            np.concatenate([labels.ravel() for labels in self._tied]) if self._tied else np.zeros(0, np.int64),
        )
        for value in (*self._values, *self._states.values()):
            for labels in value.fields.values() if value is not None else ():
                loose = np.setdiff1d(labels, tied)
                if len(loose):
                    context.labels.freeze(loose, f"the rule of {self.where} does not tie it")
        results = []
        for value in self._fresh:
            fields = {axis: labels for axis, labels in value.fields.items() if np.isin(labels, tied).all()}
            results.append(replace(value, fields=fields))
        return results


def _apply(connect: Callable[[Links], object]) -> Rule:
    def rule(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
        links = Links(context, op, inputs)
        connect(links)
        return links.finish()

    return rule


@handles("WholeLayer")
def _whole_layer(context: Context, op: Operation, inputs: Inputs) -> list[Labelled]:
    """A layer with a rule of its own."""
    rule = find_layer_rule(op.layer.module) if op.layer is not None else None
    if rule is None:
        return freeze_all(context, op, inputs, f"no rule for the operation {op.where}")
    return _apply(rule.connect)(context, op, inputs)


RuleTarget = type[nn.Module] | nn.Module | type[torch.autograd.Function] | str
"""What a rule may be for: a class of modules, one module, a `torch.autograd.Function`, or an operation's name."""


def register_rule(
    target: RuleTarget,
    connect: Callable[[Links], object],
    shrink: Callable[[nn.Module], object] | None = None,
) -> None:
    """Tells CleanAI what a layer or an operation of your own connects; a later call replaces an earlier one.

    The proof after pruning checks what the rule said.

    Args:
        target: a module class (its subclasses too, unless they have a forward of their own) or one module (and its
            copies), which is then treated as one operation whose inside is not looked at; or a
            `torch.autograd.Function`, or autograd's name of an operation ("Relu").
        connect: gets the `cleanai.rules.Links` of one call and ties the dimensions that live or die together. What it
            does not tie is never pruned, so a rule that says too little is safe.
        shrink: called with a module of the target after its tensors have become smaller, to bring up to date what else
            it keeps (``module.width = module.weight.shape[0]``).

    Raises:
        InputError: the target is none of these, ``connect`` or ``shrink`` is no function, or ``shrink`` is given for an
            operation. (What ``connect`` raises becomes a `TraceError` that names the layer, once a model is traced.)

    Example:
        >>> class Scale(nn.Module):  # y = x * g, with g kept as exp(weight): traced as one operation
        ...     def __init__(self, width):
        ...         super().__init__()
        ...         self.width, self.weight = width, nn.Parameter(torch.zeros(width))
        ...
        ...     def forward(self, x):
        ...         return x * self.weight.exp().reshape(1, self.width)
        >>> def connect(links):
        ...     links.tie(links.input().dim(1), links.tensor("weight").dim(0), links.output().dim(1))
        >>> def shrink(module):
        ...     module.width = module.weight.shape[0]
        >>> register_rule(Scale, connect, shrink)
        >>> from cleanai import StructuredPruner
        >>> net = nn.Sequential(nn.Linear(3, 8), Scale(8), nn.Linear(8, 2))
        >>> StructuredPruner(net, torch.randn(1, 3), pruning_ratio=0.5).prune()[1].width
        4
        >>> unregister_rule(Scale)
    """
    if not callable(connect) or (shrink is not None and not callable(shrink)):
        raise InputError("connect and shrink must be functions: connect(links) and shrink(module)")
    name = _operation_name(target)
    if name is None:
        add_layer_rule(target, LayerRule(connect, shrink))  # ty: ignore[invalid-argument-type]
        return
    if shrink is not None:
        raise InputError(f"{name} is an operation, which holds nothing that could shrink; leave shrink out")
    _replaced.setdefault(name, RULES.get(name))
    RULES[name] = _apply(connect)


_replaced: dict[str, Rule | None] = {}


def unregister_rule(target: RuleTarget) -> None:
    """Takes a rule back that `register_rule` set; CleanAI's own rule of an operation is in force again.

    A ``target`` that has no rule is left alone.

    Raises:
        InputError: it is nothing that a rule could be for.

    Example:
        >>> from cleanai.rules import RULES
        >>> own = RULES["Relu"]
        >>> register_rule("Relu", lambda links: links.tie(links.input().dim(1), links.output().dim(1)))
        >>> RULES["Relu"] is own
        False
        >>> unregister_rule("Relu")
        >>> RULES["Relu"] is own
        True
    """
    name = _operation_name(target)
    if name is None:
        remove_layer_rule(target)  # ty: ignore[invalid-argument-type]
    elif name in _replaced:
        own = _replaced.pop(name)
        if own is None:
            del RULES[name]
        else:
            RULES[name] = own


def _operation_name(target: Any) -> str | None:
    """Autograd's name of an operation as `Operation.kind` has it; None for a module or a class of modules."""
    if isinstance(target, nn.Module) or (isinstance(target, type) and issubclass(target, nn.Module)):
        return None
    if isinstance(target, type) and issubclass(target, torch.autograd.Function):
        return target.__name__
    if isinstance(target, str) and target:
        return target
    raise InputError(
        f"register_rule: {target!r} is no module, no class of modules, no torch.autograd.Function and no name of an "
        "operation"
    )
