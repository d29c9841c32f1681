"""What is served beside the page: the frames of runs, over a WebSocket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from starlette.requests import HTTPConnection

from dg_mlx.canvas.control import Touch, What
from dg_mlx.errors import DGError

from .runs import Run, Runs

GONE, FORBIDDEN = 4404, 4403
"""Codes with which a watcher is sent away."""
LONGEST = 16_384
"""Most characters of a command."""

Allowed = Callable[[HTTPConnection], bool]


def router(runs: Runs, allowed: Allowed) -> APIRouter:
    """`/dg/runs/{id}/ws?from=n`: frames from number n on, a line each; commands come back.

    `allowed` says whether whoever asks may see anything.
    """
    found = APIRouter(prefix="/dg")

    @found.websocket("/runs/{id}/ws")
    async def watch(socket: WebSocket, id: str) -> None:
        await socket.accept()
        run = runs.get(id)
        if not (same_origin(socket) and allowed(socket)):
            await socket.close(FORBIDDEN)
        elif run is None:
            await socket.close(GONE)
        else:
            await _serve(socket, run)

    return found


def same_origin(connection: HTTPConnection) -> bool:
    """Whether a page of this server asks, or a program that is no browser: no other site may."""
    origin = connection.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == connection.headers.get("host")


async def _serve(socket: WebSocket, run: Run) -> None:
    """Send frames until the last; take commands meanwhile."""
    first = socket.query_params.get("from", "0")
    send = asyncio.create_task(_send(socket, run, int(first) if first.isdecimal() else 0))
    take = asyncio.create_task(_take(socket, run))
    _, waiting = await asyncio.wait({send, take}, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    await asyncio.gather(send, take, return_exceptions=True)


async def _send(socket: WebSocket, run: Run, first: int) -> None:
    async for lines in run.follow(first):
        await socket.send_text("\n".join(lines))
    await socket.close()


async def _take(socket: WebSocket, run: Run) -> None:
    while True:
        try:
            text = await socket.receive_text()
        except WebSocketDisconnect:
            return
        except KeyError:
            text = ""  # bytes are no command
        try:
            command(run, text)
        except DGError as error:
            run.note(str(error))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            run.note(f"this cannot be done ({error!r:.80}); reload the page.")


def command(run: Run, text: str) -> None:
    """Do what a watcher asks: pause, resume, step, stop, pin, noise or release.

    Raises `ValueError`, `TypeError` and `KeyError` for what is none of them, and `PinError` for a
    text that cannot be pinned.
    """
    if len(text) > LONGEST:
        raise ValueError("too long")
    asked = json.loads(text)
    match asked["do"]:
        case "pause":
            run.pause()
        case "resume":
            run.resume()
        case "step":
            run.step()
        case "stop":
            run.stop()
        case "pin" | "noise" | "release":
            what: What = asked["do"]
            block = _number(asked["block"])
            positions = tuple(map(_number, asked["positions"]))
            said = asked.get("text") if what == "pin" else None
            if said is not None and not isinstance(said, str):
                raise TypeError(said)
            ids = tuple(map(_number, asked.get("ids", ())))
            if not positions or (what == "pin" and not said and len(ids) != len(positions)):
                raise ValueError("nothing to pin")
            run.touch(Touch(what=what, block=block, positions=positions, ids=ids), said)
        case _:
            raise ValueError(f"there is no {text}")


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(value)
    return value
