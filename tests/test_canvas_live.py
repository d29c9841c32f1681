"""The canvas as it is used, on a terminal in memory."""

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import fakes
import numpy as np
import pytest
import scripted
from emulator import Emulator, printed

from dg_mlx.cli.canvas.frame import Frames, View
from dg_mlx.cli.canvas.ink import palette
from dg_mlx.cli.canvas.live import FPS, Live
from dg_mlx.events import Committed, Draft, Event, Prefilled
from dg_mlx.signs import harmless

FRAME = re.compile(r"\x1b\[\?2026h\x1b\[\?7l\x1b\[\?25l.*\x1b\[\?7h\x1b\[\?2026l", re.DOTALL)


def terminal_of(monkeypatch: pytest.MonkeyPatch, columns: int = 80, lines: int = 24) -> Emulator:
    # Not in a fixture: pytest puts its own stdout back after those.
    emulator = Emulator(columns, lines)
    monkeypatch.setattr(sys, "stdout", emulator)
    monkeypatch.setattr(sys, "stderr", emulator)
    return emulator


ENGINE = scripted.ScriptedEngine(0, steps=6)


def events(script: str) -> Iterator[Event]:
    return ENGINE.stream([{"content": script}])


def live(terminal: Emulator, view: View = "guess", depth: Any = "true") -> Live:
    frames = Frames(ENGINE.processor, ends=(scripted.END,), most=4096)
    return Live(frames, view, palette(depth, "dark"), terminal)


def answer(script: str) -> str:
    return "".join(scripted.SCRIPTS[script])


@pytest.mark.parametrize("view", ["guess", "raw", "grid"])
@pytest.mark.parametrize("script", scripted.SCRIPTS)
@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (20, 24), (40, 5), (200, 50), (7, 2)])
def test_the_scrollback_holds_the_answer_once(
    script: str, columns: int, lines: int, view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = terminal_of(monkeypatch, columns, lines)
    terminal.write("> hi\n")
    with live(terminal, view) as shown:
        for event in events(script):
            shown.show(event)
            shown.draw()
    assert not shown.failed
    assert terminal.everything == printed("> hi\n" + harmless(answer(script)), columns, lines)
    assert terminal.restored


def test_what_is_seen_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    terminal.write("> hi\n")
    with live(terminal) as shown:
        shown.draw()
        assert terminal.visible[1] == "reading the prompt"
        for event in events("blocks"):
            shown.show(event)
            shown.draw()
            if isinstance(event, Draft) and event.block == 1 and event.step == 6:
                break
        # The first block's unfinished line is still the canvas's.
        assert terminal.visible[1:3] == [
            "The first block ends in the middle of a sentence, and the second ends with a lin",
            "e.",
        ]
        status = next(row for row in terminal.visible if "block 2" in row)
        assert re.fullmatch(
            r"block 2 · step 6/≤14 · settled 10/10 · entropy 0\.12 · \d+ tok/s · [\d.]+ steps/s",
            status,
        )
        assert terminal.screen.cursor.hidden
        assert (terminal.screen.cursor.x, terminal.screen.cursor.y) == (0, 1)


def test_states_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    words = ENGINE.processor
    ids = [words.id(word) for word in ("noise", "likely", "sure", "again", "held")]
    yes, no = True, False

    def step(number: int, accepted: list[bool], settled: list[int]) -> Draft:
        trust = fakes.trust(5)
        trust.probability[:] = [0.1, 0.9, 1, 0.2, 1]
        trust.settled[:] = settled
        return scripted.draft(
            number,
            ids,
            accepted=np.array(accepted),
            frozen=np.array([no, no, no, no, yes]),
            trust=trust,
        )

    with live(terminal) as shown:
        shown.show(step(1, [no, no, no, yes, no], [0] * 5))
        shown.show(step(2, [no, no, yes, no, no], [0, 0, 1, 0, 1]))
        shown.draw()
        row = terminal.screen.buffer[0]
        first = {name: row["noiselikelysureagainheld".index(name)] for name in
                 ("noise", "likely", "sure", "again", "held")}  # fmt: skip
        assert first["noise"].fg == "8d8d8d"
        assert first["likely"].fg == "56b4e9" and first["likely"].underscore
        assert first["sure"].fg == "009e73" and first["sure"].bold
        assert first["again"].fg == "e69f00" and first["again"].strikethrough
        assert first["held"].fg == "9a9a9a" and first["held"].reverse
        shown.show(step(3, [no, no, yes, no, no], [0, 0, 2, 0, 1]))
        shown.draw()
        sure = terminal.screen.buffer[0][len("noiselikely")]
        assert sure.fg == "default" and not sure.bold  # no longer fresh


@pytest.mark.parametrize("depth", ["none", "16", "256", "true"])
def test_frames_are_one_write_of_what_changed(depth: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    with live(terminal, depth=depth) as shown:
        for event in events("long"):
            before = len(terminal.frames)
            shown.show(event)
            shown.draw()
            shown.draw()  # nothing is new
            if isinstance(event, Draft):
                assert len(terminal.frames) - before <= 1
        frames = [frame for frame in terminal.frames if "?2026h" in frame]
    assert frames and all(FRAME.fullmatch(frame) for frame in frames)
    assert ("38;" in "".join(frames)) == (depth in ("256", "true"))
    if depth == "none":
        codes = {int(c) for f in frames for sgr in re.findall(r"\x1b\[([\d;]*)m", f)
                 for c in sgr.split(";") if c}  # fmt: skip
        assert codes <= {0, 1, 2, 4, 7, 9}


def test_the_area_only_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    heights = []
    with live(terminal) as shown:
        for event in events("long"):
            shown.show(event)
            shown.draw()
            if isinstance(event, Draft):
                heights.append(
                    next(i for i, row in enumerate(terminal.visible) if "settled" in row)
                )
    assert heights == sorted(heights)
    assert heights[-1] < 24 - 3


def test_more_above_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch, 40, 12)
    with live(terminal) as shown:
        for event in events("lines"):
            if isinstance(event, Committed):
                break
            shown.show(event)
        shown.draw()
        status = next(row for row in terminal.visible if "block" in row)
        above = int(status.split("↑")[1].split()[0])
        assert above > 10
        assert terminal.visible.index(status) == 12 - 3 - 1


def test_frames_are_few_and_the_last_one_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    start = time.perf_counter()
    with live(terminal) as shown:
        noise = [ENGINE.processor.id(word) for word in scripted.NOISE]
        for step in range(1, 201):
            shown.show(scripted.draft(step, noise[step % 7 :] + noise[: step % 7]))
            time.sleep(0.002)
        while not any("step 200/" in row for row in terminal.visible):
            assert time.perf_counter() - start < 60
            time.sleep(1 / FPS)
    seconds = time.perf_counter() - start
    assert len(terminal.frames) <= seconds * FPS + 3


def test_a_resized_terminal_is_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    with live(terminal) as shown:
        shown.show(scripted.draft(1, ENGINE.processor.ids("one two three four five six")))
        shown.draw()
        terminal.screen.resize(24, 10)
        shown.draw()
        assert terminal.visible[:4] == ["one two th", "ree four f", "ive six", "block 1"]
        terminal.screen.resize(24, 60)
        shown.draw()
        # The area keeps its height.
        assert terminal.visible[:3] == ["one two three four five six", "", ""]
        assert terminal.visible[3].startswith("block 1 step 1/≤48")
        assert "".join(terminal.visible[4:]) == ""


def test_a_fault_in_drawing_leaves_the_answer_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    with live(terminal) as shown:
        for number, event in enumerate(events("blocks")):
            if number == 9:  # in the second block: half a line is not written yet
                monkeypatch.setattr(shown._painter, "paint", lambda *_, **__: 1 / 0)
            shown.show(event)
            shown.draw()
    assert shown.failed
    note = "dg-mlx: the canvas cannot be drawn (ZeroDivisionError: division by zero); from here on "
    assert terminal.everything == printed(f"{note}answers are plain text.\n{answer('blocks')}")
    assert terminal.restored


@pytest.mark.parametrize("method", ["note", "commit", "cells", "progress"])
def test_no_fault_of_any_part_stops_an_answer(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    shown = live(terminal)
    monkeypatch.setattr(shown._frames, method, lambda *_: 1 / 0)
    with shown:
        for event in events("blocks"):
            shown.show(event)
            shown.draw()
    assert shown.failed
    assert "".join(terminal.everything).count("plain text.The first block ends") == 1
    assert terminal.everything[-1] == "The third is the last: it has 漢字 and 🦊."
    assert terminal.restored


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_exception_leaves_the_terminal_as_it_was(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = terminal_of(monkeypatch)

    def interrupted() -> None:
        with live(terminal) as shown:
            for event in events("long"):
                shown.show(event)
                shown.draw()
                if isinstance(event, Draft) and event.step == 3:
                    raise error

    before = signal.getsignal(signal.SIGTSTP)
    with pytest.raises(error):
        interrupted()
    assert terminal.everything == [""]
    assert terminal.restored
    assert signal.getsignal(signal.SIGTSTP) is before


def test_a_thought_is_set_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    ids = [scripted.THINK, *ENGINE.processor.ids("well then\nmaybe"), scripted.THOUGHT]
    with live(terminal) as shown:
        shown.show(Prefilled(tokens=3, cached=0, seconds=0.1))
        shown.show(scripted.draft(1, [*ids, *ENGINE.processor.ids("so yes")]))
        shown.draw()
        assert terminal.visible[:2] == ["(thought: 4 tokens)", "so yes"]
        trust = fakes.trust(5)
        shown.show(Committed(block=0, ids=ids[:3], text="", thought="well", trust=trust))
        shown.draw()
        shown.show(
            Committed(block=1, ids=ids[3:], text="so yes", thought=" then\nmaybe", trust=trust)
        )
    assert terminal.everything == ["(thought: 3 words)", "so yes"]


def test_ctrl_z_gives_the_terminal_back(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    stopped: list[bool] = []
    monkeypatch.setattr(
        signal, "pthread_kill", lambda thread, number: stopped.append(terminal.restored)
    )
    with live(terminal) as shown:
        shown.show(scripted.draft(1, ENGINE.processor.ids("so")))
        shown.draw()
        os.kill(os.getpid(), signal.SIGTSTP)
        while shown._suspending or not terminal.screen.cursor.hidden:
            time.sleep(1 / FPS)
        shown.draw()
        assert stopped == [True]
        assert terminal.visible[0] == "so"
        assert terminal.screen.cursor.hidden
