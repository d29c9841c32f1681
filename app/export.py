"""A recording as one HTML file that needs nothing else: no server, no network."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from html import escape
from string import Template
from typing import Any

from .assets import asset

SCRIPTS = (
    "frames.js",
    "looks.js",
    "stats.js",
    "card.js",
    "tokens.js",
    "sudoku.js",
    "timeline.js",
    "paint.js",
    "follow.js",
    "player.js",
    "change.js",
    "canvas.js",
)
"""The canvas widget: classic scripts, in the order that they need."""


def script() -> str:
    """The canvas widget as one script; it defines `DGCanvas`."""
    return "".join(asset(name) for name in SCRIPTS)


def style() -> str:
    """The canvas widget's style sheet."""
    return asset("canvas.css")


def to_html(recording: Mapping[str, Any], *, title: str) -> str:
    """The page that replays a recording (docs/recordings.md). It may fetch nothing."""
    frames = recording["frames"]
    begin: Mapping[str, Any] = next((f for f in frames if f["kind"] == "begin"), {})
    prompt = str(begin.get("prompt") or "")
    page_style, page_script = style() + asset("replay.css"), script() + asset("replay.js")
    return Template(asset("replay.html")).substitute(
        policy=_policy(page_style, page_script),
        title=escape(title),
        about=escape(_about(begin)),
        prompt=f'<div class="prompt" dir="auto">{escape(prompt)}</div>' if prompt else "",
        answer=escape(_answer(frames)),
        settings=_settings(begin.get("settings") or {}),
        style=page_style,
        script=page_script,
        recording=_inert(recording),
    )


def _policy(page_style: str, page_script: str) -> str:
    """Only what is in the file may run, and nothing may be fetched."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src '{_digest(page_script)}'",
            f"style-src '{_digest(page_style)}'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _digest(text: str) -> str:
    return "sha256-" + b64encode(sha256(text.encode()).digest()).decode()


def _inert(value: Any) -> str:
    """JSON that cannot end the element that it stands in; other programs can still read it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _about(begin: Mapping[str, Any]) -> str:
    parts = [str(begin.get("model") or "")]
    if begin.get("seed") is not None:
        parts.append(f"seed {begin['seed']}")
    return " · ".join(filter(None, [*parts, "recorded by dg-mlx"]))


def _answer(frames: list[Mapping[str, Any]]) -> str:
    """The text of an edit, or of all blocks."""
    edited = [frame["text"] for frame in frames if frame["kind"] == "edited"]
    blocks = [frame["text"] for frame in frames if frame["kind"] == "commit"]
    return str(edited[-1]) if edited else "".join(blocks)


def _settings(settings: Mapping[str, Any]) -> str:
    rows = (f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in settings.items())
    return "".join(rows)
