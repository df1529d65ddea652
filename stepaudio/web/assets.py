"""What the browser loads beside the page itself: style sheet, scripts, theme. Nothing comes from another server."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

FOLDER = Path(__file__).parent
SCRIPTS = ("studio.js", "player.js")  # in this order: studio.js keeps some clicks from player.js


def css() -> str:
    """Return the style sheet of the page."""
    return (FOLDER / "style.css").read_text(encoding="utf-8")


def head(root_path: str) -> str:
    """Return the elements of the page's head that load its scripts; see api/stream.py."""
    return "".join(f'<script src="{root_path}/stream/{name}" defer></script>' for name in SCRIPTS)


def theme() -> gr.themes.Base:
    """Return the colours and shapes of the page; its fonts are those of the reader's system."""
    made = gr.themes.Default(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    # Dark enough for white letters, and for letters on white.
    return made.set(
        color_accent="*primary_700",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
        button_cancel_background_fill="#b91c1c",
        button_cancel_background_fill_dark="#b91c1c",
        button_cancel_background_fill_hover="#991b1b",
        button_cancel_background_fill_hover_dark="#991b1b",
        block_label_text_color="*neutral_600",
        block_title_text_color="*neutral_600",
        input_placeholder_color="*neutral_500",
    )
