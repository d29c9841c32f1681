"""The WebSocket of a run: who may watch, from where on, and what can be asked for."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_serve_runs import WAIT_S, Held, Started, Tap, ended, kinds, read

from dg_mlx.errors import PromptError
from dg_mlx.serve.runs import Run, Runs

pytest.importorskip("fastapi")

from fastapi import FastAPI
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from dg_mlx.serve.routes import FORBIDDEN, GONE, LONGEST, command, router

Frame = dict[str, Any]


@pytest.fixture
def runs() -> Iterator[Runs]:
    found = Runs()
    yield found
    found.close()


@pytest.fixture
def client(runs: Runs) -> Iterator[TestClient]:
    app = FastAPI()
    app.include_router(router(runs, lambda connection: "stranger" not in connection.headers))
    with TestClient(app) as opened:
        yield opened


def frames(client: TestClient, path: str, **options: Any) -> tuple[list[Frame], int]:
    """All that come, and the code with which the server closes."""
    found: list[Frame] = []
    with client.websocket_connect(path, **options) as socket:
        while True:
            try:
                found += [json.loads(line) for line in socket.receive_text().split("\n")]
            except WebSocketDisconnect as left:
                return found, left.code


@contextmanager
def watching(client: TestClient, path: str) -> Iterator[Any]:
    """A watcher that may leave before the end."""
    with suppress(CancelledError), client.websocket_connect(path) as socket:
        yield socket


def coming(socket: Any) -> Iterator[Frame]:
    """Frames as they come, until the server closes."""
    with suppress(WebSocketDisconnect):
        while True:
            yield from map(json.loads, socket.receive_text().split("\n"))


@pytest.mark.parametrize(
    "first", ["", "?from=0", "?from=3", "?from=205", "?from=999", "?from=-1", "?from=²"]
)
def test_frames_come_from_a_number_on(client: TestClient, runs: Runs, first: str) -> None:
    run = runs.start(Started(*map(read, range(203))))
    assert run.over.wait(WAIT_S)
    start = int(first[6:]) if first[6:].isascii() and first[6:].isdigit() else 0
    assert frames(client, f"/dg/runs/{run.id}/ws{first}") == (run.frames()[start:], 1000)


def test_a_run_is_followed_while_it_goes_on(client: TestClient, runs: Runs) -> None:
    tap = Tap(5)
    run = runs.start(tap)
    with watching(client, f"/dg/runs/{run.id}/ws?from=1") as socket:
        frames = coming(socket)
        for number in range(5):
            tap.open(1)
            assert next(frames)["tokens"] == number
        assert [frame["kind"] for frame in frames] == ["end"]


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 1000),
        ({"origin": "http://testserver"}, 1000),
        ({"origin": "https://testserver"}, 1000),
        ({"origin": "http://testserver:81"}, FORBIDDEN),
        ({"origin": "http://elsewhere.example"}, FORBIDDEN),
        ({"origin": "null"}, FORBIDDEN),
        ({"origin": ""}, FORBIDDEN),
        ({"stranger": "yes"}, FORBIDDEN),
    ],
)
def test_no_other_site_may_watch(
    client: TestClient, runs: Runs, headers: dict[str, str], code: int
) -> None:
    run = runs.start(Started(read()))
    assert run.over.wait(WAIT_S)
    found, closed = frames(client, f"/dg/runs/{run.id}/ws", headers=headers)
    assert closed == code and bool(found) == (code == 1000)


def test_a_run_that_is_gone_is_said_to_be(client: TestClient) -> None:
    assert frames(client, "/dg/runs/no-such-run/ws") == ([], GONE)
    stranger = {"origin": "http://elsewhere.example"}
    assert frames(client, "/dg/runs/no-such-run/ws", headers=stranger) == ([], FORBIDDEN)


def test_a_watcher_that_leaves_stops_nothing(client: TestClient, runs: Runs) -> None:
    tap = Tap(3)
    run = runs.start(tap)
    with watching(client, f"/dg/runs/{run.id}/ws") as socket:
        assert next(coming(socket))["kind"] == "begin"
    tap.open(3)
    assert run.over.wait(WAIT_S) and len(run.lines) == 5


def test_commands_are_obeyed(client: TestClient, runs: Runs) -> None:
    run = runs.start(Held())
    with watching(client, f"/dg/runs/{run.id}/ws") as socket:
        socket.send_text('{"do": "pause"}')
        frames = coming(socket)
        assert "pause" in (frame["kind"] for frame in frames)
        pin = {"do": "pin", "block": 0, "positions": [1], "text": " a b"}
        socket.send_text(json.dumps(pin))
        socket.send_text(json.dumps({"do": "noise", "block": 0, "positions": [3]}))
        socket.send_text('{"do": "step"}')
        assert next(f for f in frames if f["kind"] == "touch")["positions"] == [1, 2]
        socket.send_text('{"do": "stop"}')
        assert run.over.wait(WAIT_S)
    touches = [frame["what"] for frame in run.frames() if frame["kind"] == "touch"]
    assert touches == ["pin", "noise"]


BAD = [
    "",
    "no JSON",
    "[]",
    "null",
    "7",
    '"stop"',
    "{}",
    '{"do": "explode"}',
    '{"do": ["stop"]}',
    '{"do": "pin"}',
    '{"do": "pin", "block": 0, "positions": []}',
    '{"do": "pin", "block": 0, "positions": [1]}',
    '{"do": "pin", "block": 0, "positions": [1], "ids": [1, 2]}',
    '{"do": "pin", "block": 0, "positions": [1], "text": 5}',
    '{"do": "pin", "block": "0", "positions": [1], "text": "a"}',
    '{"do": "noise", "block": 0, "positions": [true]}',
    '{"do": "noise", "block": 0, "positions": [0.5]}',
    '{"do": "release", "block": 0, "positions": "12"}',
    "[" * LONGEST,
    '{"do": "stop", "why": "' + "x" * LONGEST + '"}',
]


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:30])
def test_bad_commands_are_told_and_stop_nothing(client: TestClient, runs: Runs, text: str) -> None:
    tap = Tap(1)
    run = runs.start(tap)
    with watching(client, f"/dg/runs/{run.id}/ws?from=1") as socket:
        frames = coming(socket)
        socket.send_text(text)
        note = next(frames)
        assert note["kind"] == "note" and "cannot be done" in note["text"]
        assert "\n" not in note["text"] and len(note["text"]) < 200
        tap.open(1)
        assert next(frames)["kind"] == "read"
    assert run.over.wait(WAIT_S)


def test_bytes_are_no_command(client: TestClient, runs: Runs) -> None:
    tap = Tap(1)
    run = runs.start(tap)
    with watching(client, f"/dg/runs/{run.id}/ws?from=1") as socket:
        frames = coming(socket)
        socket.send_bytes(b"\xff\x00")
        assert next(frames)["kind"] == "note"
        tap.open(1)
        assert next(frames)["kind"] == "read"


def test_a_text_that_has_no_tokens_is_told(client: TestClient, runs: Runs) -> None:
    may = threading.Event()

    def source(run: Run) -> Iterator[Any]:
        yield from Started()(run)

        def encode(text: str) -> list[int]:
            raise PromptError(f"there are no tokens for {text!r}; write another.")

        run._encode = encode
        yield read()
        assert may.wait(WAIT_S)

    run = runs.start(source)
    with watching(client, f"/dg/runs/{run.id}/ws?from=2") as socket:
        pin = {"do": "pin", "block": 0, "positions": [1], "text": "ﬀ"}
        frames = coming(socket)
        socket.send_text(json.dumps(pin))
        note = next(f for f in frames if f["kind"] == "note")
        assert note["text"] == "there are no tokens for 'ﬀ'; write another."
        may.set()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
COMMANDS = st.dictionaries(
    st.sampled_from(["do", "block", "positions", "ids", "text"]),
    JSON | st.sampled_from(["pause", "resume", "step", "pin", "noise", "release"])
    | st.lists(st.integers()),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(text=st.text() | JSON.map(json.dumps) | COMMANDS.map(json.dumps))
def test_no_command_does_harm(text: str) -> None:
    run = Run("1", lambda run: iter(()), lambda run: None)
    with suppress(ValueError, TypeError, KeyError):
        command(run, text)
    assert all(isinstance(at, int) for touch in run.control.take() for at in touch.positions)
    assert kinds(ended(Started())) == ["begin", "end"]
