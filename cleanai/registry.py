"""Layers that are traced as one operation: which they are, what they connect, and how they shrink."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

_MARK = "_cleanai_rule"


@dataclass(frozen=True)
class LayerRule:
    """What a layer connects (``connect`` gets a `cleanai.rules.Links`), and what it updates once it is smaller."""

    connect: Callable[[Any], object]
    shrink: Callable[[nn.Module], object] | None = None


_OWN: dict[type, LayerRule] = {}
_BY_CLASS: dict[type, LayerRule] = {}
_BY_MARK: dict[str, LayerRule] = {}


def add_own_rule(kind: type[nn.Module], rule: LayerRule) -> None:
    """Gives a class of torch's layers the rule that is in force unless the user registers another."""
    _OWN[kind] = _BY_CLASS[kind] = rule


def add_layer_rule(target: type[nn.Module] | nn.Module, rule: LayerRule) -> None:
    """Gives a class of modules, or one module and its copies, a rule."""
    if isinstance(target, nn.Module):
        # A mark in the module itself, so that its copies have it too and the module still pickles.
        mark = uuid.uuid4().hex
        target.__dict__[_MARK] = mark
        _BY_MARK[mark] = rule
    else:
        _BY_CLASS[target] = rule


def remove_layer_rule(target: type[nn.Module] | nn.Module) -> None:
    """Takes a rule back, so that CleanAI's own is in force again; a target without one is left alone."""
    if isinstance(target, nn.Module):
        _BY_MARK.pop(target.__dict__.pop(_MARK, ""), None)
    elif target in _OWN:
        _BY_CLASS[target] = _OWN[target]
    else:
        _BY_CLASS.pop(target, None)


def find_layer_rule(module: nn.Module) -> LayerRule | None:
    """The rule of a module: its own, or that of the class whose forward it runs."""
    mark = module.__dict__.get(_MARK)
    if mark in _BY_MARK:
        return _BY_MARK[mark]
    for kind in type(module).__mro__:
        rule = _BY_CLASS.get(kind)
        if rule is not None:
            # A subclass with a forward of its own may do something else.
            return rule if type(module).forward is getattr(kind, "forward", None) else None
    return None
