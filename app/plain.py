"""What all tabs need of Gradio: widgets of our own, and errors as one line."""

from __future__ import annotations

import functools
import json
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from dg_mlx.errors import DGError

VERSION = secrets.token_hex(4)
"""Of the scripts that this server serves: no browser takes those of another."""


def widget(kind: str, events: str, value: str = "{}", **options: Any) -> gr.HTML:
    """An element that `static/` draws from its value, which is JSON, and whose events it makes.

    `kind`: the function of `DGPage` that draws it; `events`: their names, by spaces. (No class of
    ours: Gradio writes a file beside the source of every subclass.)
    """
    look = "dg-host" if kind == "canvas" else "dg-host dg-part"  # a canvas has its own
    return gr.HTML(
        value,
        html_template=f'<div class="{look}" data-testid="{kind}-host"></div>',
        # Gradio looks for the names of events here.
        js_on_load=f"DGPage.{kind}(element, props, trigger, watch, {events.split()})",
        # It waits for the script. (Gradio's own way for styles drops rules that it does not know.)
        head=f'<link rel="stylesheet" href="dg/style.css?v={VERSION}">'
        f'<script src="dg/script.js?v={VERSION}"></script>',
        apply_default_css=False,
        **options,
    )


def on(element: gr.HTML, event: str, **options: Any) -> None:
    """Listen to an event of a `widget`, as to Gradio's."""
    getattr(element, event)(**options)


def one_line(error: BaseException) -> str:
    """An error's message, as a sentence."""
    return " ".join(str(error).split())


class Notices:
    """Where a page says what went wrong: errors that the user can fix, as one line each."""

    def __init__(self) -> None:
        self.widget = widget("notice", "seen", elem_id="dg-notice")

    def told(self, run: Callable[..., Any], outputs: Sequence[Any]) -> dict[str, Any]:
        """How to listen with `run`, whose values go to `outputs`.

        After an error nothing on the page changes but this. No queue: it would take a connection of
        the browser's few for as long as `run` takes.
        """

        @functools.wraps(run)
        def wrapped(*args: Any) -> list[Any]:
            try:
                found = run(*args)
            except DGError as error:
                return [*[gr.skip()] * len(outputs), said(one_line(error))]
            return [*(found if isinstance(found, list) else [found]), gr.skip()]

        return {
            "fn": wrapped,
            "outputs": [*outputs, self.widget],
            "queue": False,
            "show_progress": "hidden",
        }


def said(text: str) -> str:
    """The value of the notices' widget."""
    return json.dumps({"text": text, "n": time.monotonic_ns()})  # so that the same is said again
