"""Components of Gradio with methods of ours.

Gradio makes a component anew, from its class, whenever an update reaches it: a method that is put on the object alone
is lost then. A subclass made by a class statement would do, but its metaclass writes a stub file beside our modules.
"""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Callable
from typing import Any, TypeVar

import gradio as gr

B = TypeVar("B", bound=gr.blocks.Block)


def specialise(block: B, **methods: Callable[..., Any]) -> B:
    """Give a block, and all that Gradio makes anew from it, these methods; returns the block."""
    before = type(block)
    # is_template: the browser shall take it for what its parent is.
    names = {"is_template": True, "__module__": before.__module__, **methods}
    after = ABCMeta.__new__(type(before), before.__name__, (before,), names)
    block.__class__ = after
    return block


def any_value(choice: B) -> B:
    """Let a field of choices take what is no choice (any more): it is for us to answer that, in one sentence."""
    return specialise(choice, preprocess=lambda self, payload: payload)
