"""Drafts to cells: states, what is text and what is not, and the numbers beside them."""

import os
import pty
import termios
import threading
from typing import Any

import fakes
import numpy as np
import pytest
import scripted
from scripted import BYTE, END, THINK, THOUGHT

from dg_mlx.cli.canvas import background as asking
from dg_mlx.cli.canvas.background import answered, background
from dg_mlx.cli.canvas.frame import Frames
from dg_mlx.cli.canvas.fresh import Fresh
from dg_mlx.cli.canvas.ink import Ink, depth, palette
from dg_mlx.cli.canvas.status import status
from dg_mlx.events import Committed, Draft
from dg_mlx.replay.states import State, States

YES, NO = True, False


def draft(step: int, guess: list[int], **given: Any) -> Draft:
    """A step of which only what matters is given."""
    trust = fakes.trust(len(guess))
    trust.probability[:] = given.pop("probability", 0.1)
    trust.settled[:] = given.pop("settled", 0)
    for name in ("accepted", "frozen"):
        if name in given:
            given[name] = np.array(given[name])
    if "canvas" in given:
        given["canvas"] = np.array(given["canvas"], np.int32)
    return scripted.draft(step, guess, trust=trust, **given)


def frames(most: int = 100) -> tuple[Frames, scripted.Words]:
    words = scripted.Words()
    return Frames(words, ends=(END,), most=most), words


def read(made: Frames, view: Any = "guess") -> str:
    return "".join(text for text, _ in made.cells(view))


# States ------------------------------------------------------------------------------------------


def test_states_of_positions() -> None:
    states, guess = States(), [9] * 6
    now = states.note(
        draft(
            1,
            guess,
            probability=[0.1, 0.9, 1, 1, 0.4, 1],
            accepted=[NO, NO, YES, YES, NO, NO],
            frozen=[NO, NO, NO, NO, NO, YES],
        )
    )
    # In the first step nothing has shown that it stays.
    first = [State.NOISE, *[State.CANDIDATE] * 3, State.NOISE, State.FROZEN]
    assert now.tolist() == first
    for step in (2, 3):
        now = states.note(
            draft(
                step,
                guess,
                probability=[0.1, 0.9, 1, 1, 0.4, 1],
                accepted=[NO, NO, YES, NO, YES, NO],
                settled=[0, 1, 1, 1, 0, 1],
                frozen=[NO, NO, NO, NO, NO, YES],
            )
        )
    then = [State.NOISE, State.CANDIDATE, State.SETTLED, State.RENOISED, State.CANDIDATE]
    assert now.tolist() == [*then, State.FROZEN]


def test_what_settles_is_fresh_once_even_if_frames_are_left_out() -> None:
    states, fresh = States(), Fresh()
    first = states.note(draft(1, [9, 9], accepted=[YES, YES], settled=[1, 0]))
    assert fresh.inks(first).tolist() == [Ink.FRESH, Ink.CANDIDATE]
    states.note(draft(2, [9, 9], accepted=[YES, YES], settled=[2, 1]))
    third = states.note(draft(3, [9, 9], accepted=[YES, YES], settled=[3, 2]))
    assert fresh.inks(third).tolist() == [Ink.SETTLED, Ink.FRESH]
    assert fresh.inks(third).tolist() == [Ink.SETTLED, Ink.SETTLED]


# Text --------------------------------------------------------------------------------------------


def test_text_ends_with_the_first_end_token_of_the_guess() -> None:
    made, words = frames()
    ids = [*words.ids("one two"), END, *words.ids(" three"), END]
    made.note(draft(1, ids))
    assert read(made) == "one two"
    assert read(made, "raw") == "one two"
    assert read(made, "grid") == "one two···"


def test_text_ends_with_the_longest_answer() -> None:
    made, words = frames(most=3)
    ids = words.ids("one two three four")
    made.commit(Committed(block=0, ids=ids[:1], text="one", trust=fakes.trust(1)))
    made.note(draft(1, ids[1:]))
    assert read(made) == " two three"
    progress = made.progress()
    assert progress is not None
    assert progress.positions == 2


def test_the_canvas_with_its_noise() -> None:
    made, words = frames()
    guess, canvas = words.ids("one two three"), words.ids("one\n\n")
    made.note(draft(1, guess, canvas=canvas, accepted=[YES, NO, YES], probability=1, settled=1))
    # A line break that the canvas holds is one; that of noise is a sign.
    assert made.cells("raw") == [("one", Ink.FRESH), ("↵", Ink.NOISE), ("\n", Ink.FRESH)]


def test_a_thought_is_a_remark_that_counts() -> None:
    made, words = frames()
    ids = [THINK, *words.ids("let me see"), THOUGHT, *words.ids("so yes")]
    made.note(draft(1, ids))
    assert made.cells("guess")[0] == ("(thought: 3 tokens)\n", Ink.QUIET)
    assert read(made) == "(thought: 3 tokens)\nso yes"
    assert read(made, "raw") == "<think>let me see<thought>so yes"
    made.commit(Committed(block=0, ids=ids[:3], text="", thought="let me", trust=fakes.trust(3)))
    assert made.cells("guess") == []
    made.note(draft(1, ids[3:]))  # the thought goes on
    assert read(made) == "(thought: 3 tokens)\nso yes"
    made.commit(Committed(block=1, ids=ids[3:], text="so yes", trust=fakes.trust(4)))
    made.note(draft(1, words.ids(" and no")))
    assert read(made) == " and no"


def test_text_of_control_and_bidi_characters_is_harmless() -> None:
    made, words = frames()
    made.note(draft(1, words.ids("a\x1b[2J \u202eb")))
    for view in ("guess", "raw", "grid"):
        assert read(made, view) == "a␛[2J <U+202E>b"


def test_characters_of_several_tokens_are_the_last_ones() -> None:
    made, words = frames()
    fox = [BYTE + value for value in "🦊".encode()]
    a, b = words.ids("a b")
    made.note(draft(1, [a, *fox, b, *fox[:2], a, BYTE + 7]))
    texts = [text for text, _ in made.cells("guess")]
    assert texts == ["a", "", "", "", "🦊", " b", "", "\ufffd", "a", "␇"]


def test_a_draft_of_nothing_but_its_end() -> None:
    made, _ = frames()
    assert made.progress() is None
    made.note(draft(1, [END, END]))
    assert read(made) == ""
    progress = made.progress()
    assert progress is not None
    assert (progress.positions, progress.settled) == (1, 0)


def test_numbers_count_up_to_the_end() -> None:
    made, words = frames()
    ids = [*words.ids("one two"), END, END, END]
    made.commit(Committed(block=0, ids=ids[:2], text="one two", trust=fakes.trust(2)))
    entropy = np.array([0, 0.5, 1, 9, 9], np.float32)
    accepted = [YES, NO, YES, YES, YES]
    made.note(draft(1, ids, accepted=accepted, settled=1, entropy=entropy, block=1))
    progress = made.progress()
    assert progress is not None
    assert (progress.block, progress.step, progress.settled, progress.positions) == (1, 1, 2, 3)
    assert progress.entropy == pytest.approx(0.5)
    assert (progress.tokens, progress.steps) == (4, 1)


# Looks -------------------------------------------------------------------------------------------


def test_colours_are_the_designs() -> None:
    dark, light = palette("true", "dark"), palette("true", "light")
    assert dark[Ink.NOISE] == "2;38;2;141;141;141"
    assert light[Ink.NOISE] == "2;38;2;118;118;118"
    assert dark[Ink.CANDIDATE] == "4;38;2;86;180;233"
    assert light[Ink.RENOISED] == "9;38;2;179;74;0"
    assert dark[Ink.SETTLED] == light[Ink.SETTLED] == ""


@pytest.mark.parametrize("depths", ["none", "16", "256", "true"])
@pytest.mark.parametrize("side", ["dark", "light"])
def test_no_two_states_differ_by_hue_alone(depths: Any, side: Any) -> None:
    states = (Ink.NOISE, Ink.CANDIDATE, Ink.SETTLED, Ink.FRESH, Ink.RENOISED, Ink.FROZEN)
    codes = palette(depths, side)
    attributes = [codes[state].partition(";")[0] for state in states]
    assert len(set(attributes)) == len(states)


@pytest.mark.parametrize(
    ("environ", "colours"),
    [
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, "true"),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor", "NO_COLOR": "1"}, "none"),
        ({"TERM": "xterm-256color", "NO_COLOR": ""}, "256"),
        ({"TERM": "xterm-direct"}, "true"),
        ({"TERM": "xterm"}, "16"),
        ({}, "16"),
    ],
)
def test_colours_are_those_the_terminal_has(environ: dict[str, str], colours: str) -> None:
    assert depth(environ) == colours


def test_the_background() -> None:
    assert background({"COLORFGBG": "0;15"}) == "light"
    assert background({"COLORFGBG": "15;default;0"}) == "dark"
    assert background({"TERM": "xterm"}) == "dark"  # there is nobody to ask
    assert answered(b"\x1b]11;rgb:ffff/ffff/dddd\x1b\\\x1b[?62;c") == "light"
    assert answered(b"\x1b]11;rgb:1c/1c/24\x07\x1b[?62;c") == "dark"
    assert answered(b"\x1b[?62;c") == "dark"


def ask(monkeypatch: pytest.MonkeyPatch, answer: bytes, typed: bytes = b"") -> tuple[bytes, bytes]:
    """What the terminal was asked, and what was understood of its answer."""
    ours, theirs = pty.openpty()
    monkeypatch.setattr(asking, "WAIT_S", 10 if answer else 0.05)
    before = termios.tcgetattr(theirs)
    os.write(ours, typed)
    asked: list[bytes] = []

    def terminal() -> None:
        while not b"".join(asked).endswith((b"\x1b[c", b"\0")):
            asked.append(os.read(ours, 100))
        os.write(ours, answer)

    thread = threading.Thread(target=terminal)
    thread.start()
    understood = asking._ask(theirs, theirs)
    os.write(theirs, b"\0")
    thread.join()
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)
    return b"".join(asked), understood


def test_a_terminal_is_asked_for_its_background(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer in (b"\x1b]11;rgb:ffff/ffff/dddd\x1b\\\x1b[?62;c", b"\x1b[?1;2c", b""):
        asked, understood = ask(monkeypatch, answer)
        assert asked.startswith(b"\x1b]11;?\x1b\\\x1b[c")
        assert understood == answer


def test_what_is_typed_is_not_taken_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, understood = ask(monkeypatch, b"", typed=b"hi\n")
    assert b"\x1b" not in asked and understood == b""


def test_the_status_fits() -> None:
    parts = ["block 1", "step 2/≤48", "settled 3/4"]
    assert status(parts, 0, 40).text == "block 1 · step 2/≤48 · settled 3/4"
    assert status(parts, 5, 36).text == "↑5 block 1 step 2/≤48 settled 3/4"
    assert status(parts, 5, 24).text == "↑5 block 1 step 2/≤48"
    assert status(parts, 0, 4).text == "bloc"
