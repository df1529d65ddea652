"""What a client may send as a file: nothing but what was uploaded to this server.

A client can put any text where the path of its upload belongs, in any field. Gradio would fetch an address and, for
an application that is mounted in another one, copy any file of this machine to where it can be downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from stepaudio.web.specialise import specialise


def is_upload(path: str | Path) -> bool:
    """Return whether a path lies in the folder of uploads and results."""
    return Path(get_upload_folder()).resolve() in Path(path).resolve().parents


def take_uploads_only(blocks: gr.Blocks) -> None:
    """Make every component of the page refuse paths and addresses of other things, without touching them."""
    taken: set[str] = set()
    blocks.temp_file_sets.append(taken)  # so that Gradio deletes them in time

    async def keep(block: Any, path: str | Path | None) -> str | None:
        if path is None:
            return None
        if not is_upload(path):
            raise gr.Error("A file must be uploaded; paths and addresses are not taken.", print_exception=False)
        taken.add(str(path))
        return str(path)

    for block in blocks.blocks.values():
        specialise(block, async_move_resource_to_block_cache=keep)
    # Gradio checks local paths too, but of launched applications only, and mounting does not count as that.
    blocks.has_launched = True
