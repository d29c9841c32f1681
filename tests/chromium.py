"""A real browser, and a server with a page that has canvas widgets and runs to follow."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from dg_mlx.app import export
from playwright.sync_api import Browser, Page, sync_playwright
from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

ARGS = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync""".split()  # noqa: SIM905 - easier to read

Handler = Callable[[ServerConnection, str, int], None]
"""(connection, path, number of the first frame that is wanted)."""

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>canvas</title>
<link rel="icon" href="data:,"><style>body {{ margin: 20px }} {style}</style></head>
<body><div id="a"></div><div id="b"></div><script>{script}</script></body></html>"""


@contextmanager
def browser() -> Iterator[Browser]:
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium; install it, or set CHROMIUM to its path")
        pytest.skip("no Chromium; install it, or set CHROMIUM to its path")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=ARGS)
        yield chromium
        chromium.close()


@contextmanager
def opened(chromium: Browser, **options: Any) -> Iterator[Page]:
    """An empty page that fails its test when it writes an error to the console."""
    page = chromium.new_page(**{"viewport": {"width": 1000, "height": 900}, **options})
    wrong: list[str] = []
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.set_default_timeout(20_000)
    yield page
    page.close()
    assert [text for text in wrong if "WebSocket" not in text] == []


def html() -> str:
    return PAGE.format(style=export.style(), script=export.script())


@contextmanager
def server(handler: Handler) -> Iterator[str]:
    """Serves the page, and runs over WebSockets; its address."""

    def page(connection: ServerConnection, request: Request) -> Response | None:
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return None
        body = html().encode()
        headers = Headers({"Content-Type": "text/html", "Content-Length": str(len(body))})
        headers["Connection"] = "close"
        return Response(HTTPStatus.OK, "OK", headers, body)

    def run(connection: ServerConnection) -> None:
        assert connection.request is not None
        url = urlsplit(connection.request.path)
        handler(connection, url.path, int(parse_qs(url.query)["from"][0]))

    with serve(run, "127.0.0.1", 0, process_request=page) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.socket.getsockname()[1]}/"
        served.shutdown()
        thread.join()


def lines(frames: Sequence[dict[str, Any]]) -> str:
    return "\n".join(json.dumps(frame) for frame in frames)
