"""The page without a browser: its components by their ids, and its buttons pressed with chosen values."""

from __future__ import annotations

import secrets
from types import SimpleNamespace
from typing import Any

import gradio as gr
from gradio.helpers import special_args

from stepaudio.service import Service
from stepaudio.web.page import Page
from stepaudio.web.uploads import take_uploads_only


def build_page(service: Service, **page: Any) -> gr.Blocks:
    """Return the page over a service, as api/app.py mounts it."""
    blocks = Page(service, **page).build()
    take_uploads_only(blocks)
    return blocks


class Studio:
    """A page as one browser tab sees it. ``values``: what stands in the fields, by component id."""

    def __init__(self, blocks: gr.Blocks, session: str = "") -> None:
        self.blocks = blocks
        self.session = session or secrets.token_hex(8)
        self.values: dict[int, Any] = {}

    def component(self, elem_id: str) -> Any:
        (found,) = [block for block in self.blocks.blocks.values() if getattr(block, "elem_id", None) == elem_id]
        return found

    def fill(self, **fields: Any) -> Studio:
        """Put values into fields; an underscore in a name stands for the hyphen of the id."""
        for name, value in fields.items():
            self.values[self.component(name.replace("_", "-"))._id] = value
        return self

    def value(self, elem_id: str) -> Any:
        component = self.component(elem_id)
        return self.values.get(component._id, component.value)

    def press(self, elem_id: str, event: str = "click", session: str = "") -> dict[str, Any]:
        """Do what an event of a component does; returns the outputs by their ids, raw or as updates."""
        target = (self.component(elem_id)._id, event)
        shown: dict[str, Any] = {}
        for function in self.blocks.fns.values():
            if target in function.targets:
                self._run(function, session or self.session, shown)
        return shown

    def _run(self, function: Any, session: str, shown: dict[str, Any]) -> None:
        """Do what one function of the page does, and then what is to follow it."""
        if function.fn is not None:
            request = SimpleNamespace(session_hash=session, headers={})
            inputs = [self.values.get(each._id, each.value) for each in function.inputs]
            given, *_ = special_args(function.fn, inputs, request)
            results = function.fn(*given)
            if isinstance(results, dict) and "__type__" not in results:
                pairs = list(results.items())
            else:
                several = results if len(function.outputs) > 1 else [results]
                pairs = list(zip(function.outputs, several, strict=True)) if function.outputs else []
            for output, result in pairs:
                self._show(output, result)
                shown[getattr(output, "elem_id", None) or f"#{output._id}"] = result
        for follower in self.blocks.fns.values():
            if follower.trigger_after == function._id:
                self._run(follower, session, shown)

    def _show(self, output: gr.blocks.Block, result: Any) -> None:
        if isinstance(result, dict) and result.get("__type__") == "update":
            if "value" in result:
                self.values[output._id] = result["value"]
        else:
            self.values[output._id] = result


def shown_value(result: Any) -> Any:
    """Return the value that an output shows, whether it came raw or in an update."""
    return result.get("value") if isinstance(result, dict) else result
