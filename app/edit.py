"""Edit in place: a text, a selection, and the canvas on which its new words settle."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from dg_mlx.canvas.edit import Span
from dg_mlx.edit import Change
from dg_mlx.errors import EditError

from .desk import Desk
from .plain import Notices, on, widget
from .settings import SettingsPanel

START = "A 1...\nB 34..\nC 21..\nD 43.."
"""What stands there at first: nano rewrites boards."""


class Edit:
    """The widgets of the tab. The text itself stays in the browser."""

    def __init__(self, desk: Desk, settings: SettingsPanel, notices: Notices) -> None:
        self._desk, self._settings = desk, settings
        with gr.Row(equal_height=True):
            with gr.Column(scale=5, min_width=300):
                start = json.dumps({"text": START})
                editor = widget("editor", "rewrite", start, elem_id="dg-editor")
            with gr.Column(scale=6, min_width=360):
                canvas = widget(
                    "canvas", "commit end", elem_id="dg-canvas-edit", label="Canvas of the edit"
                )
        told = notices.told(self._rewrite, [canvas])
        on(editor, "rewrite", **told, inputs=settings.inputs)

    def _rewrite(self, data: gr.EventData, *values: Any) -> str:
        asked, given = self._settings.read(values), data._data
        text, start, end = str(given["text"]), int(given["start"]), int(given["end"])
        if not 0 <= start <= end <= len(text):
            raise EditError("the selection is not in the text; select again.")
        strength = float(given["strength"])
        if not 0 < strength <= 1:
            raise EditError(f"the strength is {strength}; choose from above 0 up to 1.")
        change = Change(
            instruction=str(given["instruction"]),
            strength=strength,
            length=int(given["length"]) if given.get("length") else None,
        )
        run = self._desk.rewrite(text, [Span(start, end)], change, asked)
        return json.dumps({"run": f"dg/runs/{run.id}/ws"})
