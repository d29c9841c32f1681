"""The canvas widget while a run goes on: its connection, its controls, and changes by hand."""

from __future__ import annotations

import json
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from recorded import LONG, Tape, recorded

pytestmark = pytest.mark.browser
chromium = pytest.importorskip("chromium")

Frame = dict[str, Any]
FOLLOW = """path => { window.events = [];
  window.a = DGCanvas.mount(document.getElementById('a'), {controls: true,
    onevent: (name, detail) => events.push([name, detail])}); a.follow(path); }"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium.browser() as opened:
        yield opened


@pytest.fixture
def serve(browser: Any) -> Iterator[Callable[[Any], Any]]:
    """Opens a page that follows a run, which `handler` serves."""
    closing: list[Any] = []

    def open_page(handler: Any) -> Any:
        server = chromium.server(handler)
        address = server.__enter__()
        tab = chromium.opened(browser)
        page = tab.__enter__()
        closing.extend([tab, server])
        page.goto(address)
        page.evaluate(FOLLOW, "/dg/runs/1/ws")
        return page

    yield open_page
    for context in closing:
        context.__exit__(None, None, None)


@dataclass
class Live:
    """A run whose frames are sent when a test says so, and that keeps what it is told."""

    tape: Tape
    told: queue.Queue[Frame] = field(default_factory=queue.Queue)

    def __post_init__(self) -> None:
        self._ready = threading.Condition()
        self._over = False

    def changed(self) -> None:
        with self._ready:
            self._ready.notify_all()

    def end(self) -> None:
        self._over = True
        self.changed()

    def _after(self, start: int) -> list[Frame]:
        """Frames from one on, when there are any; none when the run is over."""
        with self._ready:
            self._ready.wait_for(lambda: self._over or start < len(self.tape.frames))
            return self.tape.frames[start:]

    def __call__(self, connection: Any, path: str, start: int) -> None:
        def listen() -> None:
            for line in connection:
                self.told.put(json.loads(line))

        listener = threading.Thread(target=listen)
        listener.start()
        while new := self._after(start):
            connection.send(chromium.lines(new))
            start += len(new)
        connection.close()
        listener.join()


@pytest.fixture
def live() -> Iterator[Callable[[Tape], Live]]:
    """Makes runs, and ends them."""
    runs: list[Live] = []

    def make(tape: Tape) -> Live:
        runs.append(Live(tape))
        return runs[-1]

    yield make
    for run in runs:
        run.end()


@pytest.fixture
def held(live: Any) -> Live:
    """A run that is held when a short answer has settled, but is not over."""
    tape = Tape(length=16)
    tape.begin()
    steps = [*tape.drafts(tape.words.ids("one two three four five"), steps=12)]
    for step in steps[:10]:
        tape.take(step)
    tape.tell("pause")
    run: Live = live(tape)
    return run


def get(page: Any, name: str) -> Any:
    return page.locator(f"#a [data-testid={name}]")


def drawn(page: Any) -> None:
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def until(page: Any, state: str) -> None:
    page.wait_for_selector(f"#a [data-testid=canvas][data-state={state}]")


def token(page: Any, at: int) -> Any:
    return page.locator(f"#a .dg-canvas > .dg-tokens > [data-i='{at}']")


def test_run_is_followed_to_its_end(serve: Any) -> None:
    tape = recorded(LONG, "And more.", length=128)

    def run(connection: Any, path: str, start: int) -> None:
        assert path == "/dg/runs/1/ws" and start == 0
        for at in range(0, len(tape.frames), 4):
            connection.send(chromium.lines(tape.frames[at : at + 4]))

    page = serve(run)
    until(page, "done")
    assert page.evaluate("a.frames") == tape.frames
    events = page.evaluate("events")
    assert [name for name, _ in events] == ["state", "commit", "commit", "state", "end"]
    assert [detail["text"] for name, detail in events if name == "commit"] == [LONG, "And more."]
    tokens = sum(frame["tokens"] for frame in tape.frames if frame["kind"] == "commit")
    assert get(page, "status").text_content() == (
        f"Response complete, {tokens} tokens in 40 steps."
    )
    assert not get(page, "stop").is_visible()


@pytest.mark.parametrize("overlap", [0, 3])
def test_lost_connection_loses_and_doubles_nothing(serve: Any, overlap: int) -> None:
    tape = recorded(LONG, "And more.", length=128)
    starts: list[int] = []

    def run(connection: Any, path: str, start: int) -> None:
        starts.append(start)
        if len(starts) < 3:
            connection.send(chromium.lines(tape.frames[max(start - overlap, 0) : start + 9]))
            connection.socket.shutdown(socket.SHUT_RDWR)
        else:
            connection.send(chromium.lines(tape.frames[max(start - overlap, 0) :]))

    page = serve(run)
    until(page, "lost")
    assert get(page, "status").text_content() == "connection lost; trying again"
    until(page, "done")
    assert starts == [0, 9, 18]
    assert page.evaluate("a.frames") == tape.frames
    assert not get(page, "said").is_visible()
    commits = [name for name, _ in page.evaluate("events") if name == "commit"]
    assert commits == ["commit", "commit"]


def test_damaged_or_missing_lines_are_asked_for_again(serve: Any) -> None:
    tape = recorded(LONG, length=128)
    starts: list[int] = []

    def run(connection: Any, path: str, start: int) -> None:
        starts.append(start)
        if len(starts) == 1:
            connection.send(chromium.lines(tape.frames[:4]) + '\n{"n": 4, "ki')
        elif len(starts) == 2:
            connection.send(chromium.lines([tape.frames[4], *tape.frames[6:]]))
        else:
            connection.send(chromium.lines(tape.frames[start:]))

    page = serve(run)
    until(page, "done")
    assert starts == [0, 4, 5]
    assert page.evaluate("a.frames") == tape.frames


@pytest.mark.parametrize(
    ("code", "sentence"),
    [(4404, "this run is gone: the server was started again"), (4403, "not allowed")],
)
def test_run_that_cannot_be_followed_says_so(serve: Any, code: int, sentence: str) -> None:
    starts: list[int] = []

    def run(connection: Any, path: str, start: int) -> None:
        starts.append(start)
        connection.close(code)

    page = serve(run)
    until(page, "lost")
    page.wait_for_timeout(800)  # longer than it waits before it tries again
    assert starts == [0]
    assert get(page, "said").text_content() == get(page, "status").text_content() == sentence


def test_waiting_is_told_with_what_it_waits_for(serve: Any, live: Any) -> None:
    tape = Tape(length=16)
    run = live(tape)
    page = serve(run)
    page.wait_for_function(
        "document.querySelector('#a .dg-stats').textContent.startsWith('waiting for another run')"
    )
    tape.recorder.begin(model="nano", prompt="?", settings={}, seed=1, length=16)
    run.changed()
    page.wait_for_function(
        "document.querySelector('#a .dg-stats').textContent === 'reading the prompt · 1 s'"
    )


def test_failed_run_says_why(serve: Any) -> None:
    tape = recorded("words", length=16)
    tape.frames[-1:] = []
    tape.tell("error", text="out of memory: choose a smaller model")
    tape.tell("end", conversation=None, message=None)
    page = serve(lambda connection, *_: connection.send(chromium.lines(tape.frames)))
    until(page, "done")
    assert get(page, "said").text_content() == "out of memory: choose a smaller model"
    assert get(page, "status").text_content() == "out of memory: choose a smaller model"


def test_buttons_hold_step_go_on_and_stop(serve: Any, live: Any) -> None:
    tape = Tape(length=16)
    tape.begin()
    steps = iter(tape.drafts(tape.words.ids("one two three four five")))
    tape.take(next(steps))
    run = live(tape)
    page = serve(run)
    get(page, "pause").click()
    assert run.told.get(timeout=20) == {"do": "pause"}
    tape.tell("pause")
    run.changed()
    until(page, "paused")
    assert get(page, "status").text_content() == "Paused."
    assert get(page, "pause").text_content() == "Resume"
    get(page, "step").click()
    assert run.told.get(timeout=20) == {"do": "step"}
    tape.take(next(steps))
    run.changed()
    page.wait_for_selector("#a [data-testid=canvas][data-k='1'][data-state=paused]")
    assert "steps/s" not in get(page, "stats").text_content()  # nobody knows how long it took
    get(page, "pause").click()
    assert run.told.get(timeout=20) == {"do": "resume"}
    tape.tell("resume")
    run.changed()
    until(page, "live")
    assert get(page, "step").is_disabled()
    get(page, "stop").click()
    assert run.told.get(timeout=20) == {"do": "stop"}


def test_scrubbing_does_not_stop_what_comes_and_live_returns_to_it(serve: Any, live: Any) -> None:
    tape = Tape(length=16)
    tape.begin()
    steps = iter(tape.drafts(tape.words.ids("one two three four five")))
    for _ in range(5):
        tape.take(next(steps))
    run = live(tape)
    page = serve(run)
    page.wait_for_selector("#a [data-testid=canvas][data-k='4']")
    get(page, "scrub").fill("1")
    tape.take(next(steps))
    run.changed()
    page.wait_for_selector("#a [data-testid=canvas][data-frames='8']")
    assert get(page, "canvas").get_attribute("data-k") == "1"
    get(page, "live").click()
    page.wait_for_selector("#a [data-testid=canvas][data-k='5']")
    tape.take(next(steps))
    run.changed()
    page.wait_for_selector("#a [data-testid=canvas][data-k='6']")


def test_popover_sends_what_is_chosen(serve: Any, held: Live) -> None:
    page = serve(held)
    until(page, "paused")
    drawn(page)
    token(page, 1).click()
    words = page.locator("#a .dg-popover textarea")
    assert words.input_value() == " two"
    words.fill(" deux")
    get(page, "pin").click()
    wanted = {"do": "pin", "block": 0, "positions": [1], "text": " deux"}
    assert held.told.get(timeout=20) == wanted

    token(page, 0).click()
    page.keyboard.press("Escape")
    assert not get(page, "popover").is_visible()
    token(page, 0).click()
    token(page, 2).click(modifiers=["Shift"])
    assert words.input_value() == "one two three"
    assert not get(page, "release").is_visible()
    get(page, "pin-as-is").click()
    ids = held.tape.words.ids("one two three")
    wanted = {"do": "pin", "block": 0, "positions": [0, 1, 2], "ids": ids}
    assert held.told.get(timeout=20) == wanted


def test_dragging_chooses_a_span(serve: Any, held: Live) -> None:
    page = serve(held)
    until(page, "paused")
    drawn(page)
    token(page, 1).hover()
    page.mouse.down()
    token(page, 3).hover()
    page.mouse.up()
    get(page, "noise").click()
    assert held.told.get(timeout=20) == {"do": "noise", "block": 0, "positions": [1, 2, 3]}


def test_keys_choose_a_span_and_pin_a_text(serve: Any, held: Live) -> None:
    page = serve(held)
    until(page, "paused")
    drawn(page)
    canvas = get(page, "canvas")
    for key in ("Home", "ArrowRight", "Shift+ArrowRight", "Enter"):
        canvas.press(key)
    page.keyboard.type(" 2 3")
    page.keyboard.press("Enter")
    wanted = {"do": "pin", "block": 0, "positions": [1], "text": " 2 3"}
    assert held.told.get(timeout=20) == wanted
    assert page.evaluate("document.activeElement.dataset.testid") == "canvas"


def test_what_was_pinned_shows_at_once_and_can_be_released(serve: Any, held: Live) -> None:
    page = serve(held)
    until(page, "paused")
    held.tape.tell("touch", block=0, what="pin", positions=[1], ids=held.tape.words.ids("one"))
    held.changed()
    page.wait_for_selector("#a .dg-canvas > .dg-tokens > .s4[data-i='1']")
    assert page.locator("#a .dg-canvas > .dg-tokens").text_content().startswith("one")
    assert [name for name, _ in page.evaluate("events")][-1] == "pinned"
    token(page, 1).click()
    get(page, "release").click()
    assert held.told.get(timeout=20) == {"do": "release", "block": 0, "positions": [1]}


def test_earlier_steps_cannot_be_changed(serve: Any, held: Live) -> None:
    page = serve(held)
    until(page, "paused")
    get(page, "scrub").fill("8")
    drawn(page)
    token(page, 0).click()
    assert not get(page, "popover").is_visible()


def test_fault_of_a_listener_stops_nothing(serve: Any) -> None:
    tape = recorded("words", length=16)
    page = serve(lambda connection, *_: threading.Event().wait(0))
    page.evaluate("""() => { console.error = () => {}; a.destroy();
        window.a = DGCanvas.mount(document.getElementById('a'),
          {onevent: () => { throw new Error('no'); }}); }""")
    page.evaluate("frames => frames.forEach(frame => a.push(frame))", tape.frames)
    until(page, "done")
    assert page.locator("#a .dg-canvas > .dg-tokens").text_content() == "words"
