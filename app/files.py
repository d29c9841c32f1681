"""What the page fetches beside Gradio: its scripts, recordings, and conversations as files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse

from dg_mlx.conversation import import_, to_html, to_json, to_markdown
from dg_mlx.errors import DGError, PromptError
from dg_mlx.replay import Recording
from dg_mlx.serve.routes import Allowed, same_origin
from dg_mlx.units import size

from . import export
from .assets import asset
from .desk import Desk
from .models import state
from .plain import one_line

SCRIPTS = ("page.js", "edit.js", "compare.js", "models.js")
"""Of the page, beside those of the canvas."""
STYLES = ("page.css",)
MOST_SENT = 200_000_000
"""Bytes of a file."""

_CONVERSATION: Mapping[str, Any] = {
    "json": (to_json, "application/json"),
    "md": (to_markdown, "text/markdown; charset=utf-8"),
    "html": (to_html, "text/html; charset=utf-8"),
}


def router(desk: Desk, allowed: Allowed) -> APIRouter:
    """Paths under `/dg`. `allowed` says whether whoever asks may see anything."""

    def guard(request: Request) -> None:
        if not (allowed(request) and same_origin(request)):
            raise HTTPException(403, "not allowed")

    found = APIRouter(prefix="/dg", dependencies=[Depends(guard)])

    @found.get("/script.js")
    def script() -> Response:
        text = export.script() + "".join(map(asset, SCRIPTS))
        return Response(text, media_type="text/javascript; charset=utf-8")

    @found.get("/style.css")
    def style() -> Response:
        text = export.style() + "".join(map(asset, STYLES))
        return Response(text, media_type="text/css; charset=utf-8")

    @found.get("/models")
    def models(source: str = "", quant: str = "") -> dict[str, Any]:
        return state(desk, source, quant)

    @found.get("/recordings/{id}/{message}")
    def recording(id: str, message: str, form: str = "json", save: bool = False) -> Response:
        kept = _or_404(lambda: desk.recording(id, message))
        if kept is None:
            raise HTTPException(404, "nobody recorded this answer")
        return _recording(kept, form, f"{id}-{message}", save)

    @found.post("/recordings")
    async def opened(request: Request) -> Response:
        """A recording from a file, checked and unpacked."""
        try:
            return _recording(Recording.of(await _body(request), "this file"), "json", "", False)
        except DGError as error:
            return PlainTextResponse(one_line(error), 400)

    @found.get("/runs/{id}/recording")
    def run(id: str, form: str = "json", save: bool = False) -> Response:
        run = desk.runs.get(id)
        if run is None or not run.over.is_set():
            raise HTTPException(404, "this run is gone, or not over")
        return _recording(Recording(run.frames()), form, f"run-{id}", save)

    @found.get("/conversations/{id}/file")
    def conversation(id: str, form: str = "json") -> Response:
        if form not in _CONVERSATION:
            raise HTTPException(404)
        write, kind = _CONVERSATION[form]
        text = _or_404(lambda: write(desk.conversation(id)))
        return _saved(text, kind, f"{id}.{form}")

    @found.post("/conversations")
    async def imported(request: Request) -> Any:
        """A conversation from a file: ours, or messages as others write them."""
        if desk.store is None:
            return PlainTextResponse("conversations are not saved here.", 400)
        try:
            found = import_(await _body(request))
            for conversation in found:
                desk.store.keep(conversation)
                conversation.close()
        except DGError as error:
            return PlainTextResponse(one_line(error), 400)
        return {"id": found[0].id, "count": len(found)}

    return found


async def _body(request: Request) -> bytes:
    """What is sent, all of it. Raises `PromptError`."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > MOST_SENT:
            raise PromptError(f"the file is larger than {size(MOST_SENT)}; send a smaller one.")
    return bytes(data)


def _recording(kept: Recording, form: str, name: str, save: bool) -> Response:
    document = kept.document
    if form == "html":
        page = export.to_html(document, title="A recording of dg-mlx")
        return _saved(page, "text/html; charset=utf-8", f"{name}.html")
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    if save:
        return _saved(text, "application/json", f"{name}.json")
    return Response(text, media_type="application/json")


def _saved(text: str, kind: str, name: str) -> Response:
    """To be saved as a file, never shown: what is in it is not the page's own."""
    disposition = f'attachment; filename="{name}"'
    return Response(text, media_type=kind, headers={"Content-Disposition": disposition})


def _or_404(find: Any) -> Any:
    try:
        return find()
    except DGError as error:
        raise HTTPException(404, one_line(error)) from None
