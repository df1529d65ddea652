"""What a client may send as a file: nothing but what was uploaded to this server.

A client can put any text where the path of its upload belongs, in any field. Gradio would fetch an address and, for
an application that is mounted in another one, copy any file of this machine to where it can be downloaded.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import gradio as gr
from gradio.utils import get_upload_folder


def is_upload(path: str | Path) -> bool:
    """Return whether a path lies in the folder of uploads and results."""
    return Path(get_upload_folder()).resolve() in Path(path).resolve().parents


def take_uploads_only(blocks: gr.Blocks) -> None:
    """Make every component of the page refuse paths and addresses of other things, without touching them."""

    def closed_door(block: gr.blocks.Block) -> Callable[[str | Path | None], Awaitable[str | None]]:
        async def keep(path: str | Path | None) -> str | None:
            if path is None:
                return None
            if not is_upload(path):
                raise gr.Error("A file must be uploaded; paths and addresses are not taken.", print_exception=False)
            block.temp_files.add(str(path))  # so that Gradio deletes it in time
            return str(path)

        return keep

    for block in blocks.blocks.values():
        block.async_move_resource_to_block_cache = closed_door(block)
    # Gradio checks local paths too, but of launched applications only, and mounting does not count as that.
    blocks.has_launched = True
