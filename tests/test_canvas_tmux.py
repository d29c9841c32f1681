"""The chat as a person uses it: in a terminal, through tmux."""

import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import scripted

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")

HERE = Path(__file__).parent
NANO = f"{sys.executable} -m dg_mlx.cli chat --model nano"
SCRIPTED = f"{sys.executable} {HERE / 'scripted.py'} 0.1"
WAIT_S = 120


class Pane:
    """A shell in a terminal of its own."""

    def __init__(self) -> None:
        self._socket = f"dg-mlx-{uuid.uuid4().hex[:8]}"
        os_env = {k: v for k, v in os.environ.items() if k not in ("TMUX", "NO_COLOR", "COLORTERM")}
        self._env = {**os_env, "LC_ALL": "C.UTF-8", "PYTHONPATH": str(HERE.parent), "PS1": "$ "}
        self._tmux("-u", "-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", "sh")
        self._tmux("set", "-g", "window-size", "manual")
        self._tmux("set", "-g", "default-terminal", "tmux-256color")
        self.resize(80, 24)

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-L", self._socket, *arguments]
        done = subprocess.run(
            command, env=self._env, capture_output=True, text=True, timeout=30, check=True
        )
        return done.stdout

    def type(self, text: str) -> None:
        self._tmux("send-keys", "-l", text)
        self._tmux("send-keys", "Enter")

    def press(self, key: str) -> None:
        self._tmux("send-keys", key)

    def resize(self, columns: int, lines: int) -> None:
        self._tmux("resize-window", "-x", str(columns), "-y", str(lines))

    def text(self, *options: str) -> str:
        """All that it holds: scrollback and screen, with wrapped lines as one."""
        return self._tmux("capture-pane", "-p", "-J", "-S", "-", *options).rstrip()

    def modes(self) -> str:
        """Whether the cursor shows and lines wrap."""
        return self._tmux("display", "-p", "#{cursor_flag} #{wrap_flag}").strip()

    def until(self, holds: Callable[[str], bool]) -> str:
        end = time.monotonic() + WAIT_S
        while not holds(text := self.text()):
            assert time.monotonic() < end, text
            time.sleep(0.05)
        return text

    def asked(self) -> str:
        """Wait for the chat's prompt."""
        return self.until(lambda text: text.split("\n")[-1].rstrip() == ">")

    def close(self) -> None:
        subprocess.run(["tmux", "-L", self._socket, "kill-server"], timeout=30, check=False)


@pytest.fixture
def pane() -> Iterator[Pane]:
    pane = Pane()
    yield pane
    pane.close()


def after(text: str, turn: str) -> str:
    """What stands below a turn, without the next prompt and spaces where lines end."""
    below = text.split(f"> {turn}\n")[-1].rsplit("\n", 1)[0]
    return "\n".join(line.rstrip() for line in below.split("\n"))


def answer(script: str) -> str:
    lines = "".join(scripted.SCRIPTS[script]).rstrip("\n").split("\n")
    return "\n".join(line.rstrip() for line in lines)


def drawn(text: str) -> bool:
    return "/≤" in text


def test_nano_answers_once(pane: Pane) -> None:
    pane.type(f"{NANO}; stty -a | md5sum")
    pane.asked()
    pane.type("hello")
    text = pane.until(lambda text: text.count("\n>") == 2)
    assert after(text, "hello").startswith("I am nano")
    assert text.count("I am nano") == 1
    assert "block 1" not in text
    assert pane.modes() == "1 1"


def test_the_canvas_is_drawn_and_leaves_the_answer(pane: Pane) -> None:
    pane.type(SCRIPTED)
    pane.asked()
    for turn in ("long", "blocks", "wide", "lines"):
        pane.type(turn)
        pane.until(drawn)
        assert pane.modes() == "0 1"
        assert after(pane.asked(), turn) == answer(turn)
        assert pane.modes() == "1 1"


def test_the_terminal_changes_its_size_meanwhile(pane: Pane) -> None:
    pane.type(SCRIPTED)
    pane.asked()
    pane.type("long")
    pane.until(drawn)
    for columns, lines in ((80, 12), (80, 5), (100, 30), (120, 24)):
        pane.resize(columns, lines)
        time.sleep(0.3)
        assert pane.text().split("\n")[-1].lstrip("↑0123456789 ").startswith("block 1")
    assert after(pane.asked(), "long") == answer("long")


def test_a_terminal_that_gets_narrow_wraps_what_it_had(pane: Pane) -> None:
    pane.type(SCRIPTED)
    pane.asked()
    pane.type("long")
    pane.until(drawn)
    pane.resize(20, 24)
    # Rows that the terminal pushed into its history are beyond reach; the answer is whole.
    text = pane.asked()
    assert after(text, "long").endswith(answer("long"))
    assert text.count("return accept(logits)") <= 2
    assert pane.modes() == "1 1"


def test_ctrl_c_stops_the_turn_only(pane: Pane) -> None:
    pane.type(f"stty -a | md5sum; {SCRIPTED}; stty -a | md5sum")
    pane.asked()
    pane.type("long")
    pane.until(drawn)
    pane.press("C-c")
    text = pane.asked()
    assert after(text, "long") == "dg-mlx: stopped; the turn is forgotten"
    assert pane.modes() == "1 1"
    pane.type("short")
    pane.asked()
    pane.press("C-d")
    text = pane.until(lambda text: text.count("  -") == 2)
    sums = [line.split()[0] for line in text.split("\n") if line.endswith("  -")]
    assert sums[0] == sums[1]  # echo and all the rest are as before


def test_without_colours_and_without_a_canvas(pane: Pane) -> None:
    pane.type(f"NO_COLOR=1 {SCRIPTED}")
    pane.asked()
    pane.type("long")
    pane.until(lambda text: "step 5/" in text)
    shown = pane.text("-e")
    assert "\x1b[38" not in shown
    assert re.search(r"\x1b\[(0;)?4m", shown)
    pane.asked()
    pane.type("/canvas off")
    pane.until(lambda text: text.rstrip().endswith("/canvas off\n>"))
    pane.type("blocks")
    pane.until(lambda text: re.search(r"block 1 · step \d+/28", text) is not None)
    assert after(pane.asked(), "blocks") == answer("blocks")
