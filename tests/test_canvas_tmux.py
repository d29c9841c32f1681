"""The chat as a person uses it: in a terminal, through tmux."""

import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest
import scripted

from dg_mlx.cli.markdown import MarkdownStream

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")

HERE = Path(__file__).parent
NANO = f"{sys.executable} -m dg_mlx.cli chat --model nano"
SCRIPTED = f"{sys.executable} {HERE / 'scripted.py'} 0.05 --no-save"
SLOW = SCRIPTED.replace("0.05", "0.15")
WAIT_S = 60
_PROMPT = re.compile(r"^>\n\s*\S.*/help$", re.MULTILINE)


class Pane:
    """A shell in a terminal of its own."""

    def __init__(self, home: Path) -> None:
        self._socket = f"dg-mlx-{uuid.uuid4().hex[:8]}"
        os_env = {k: v for k, v in os.environ.items() if k not in ("TMUX", "NO_COLOR", "COLORTERM")}
        ours = {"LC_ALL": "C.UTF-8", "PYTHONPATH": str(HERE.parent), "DG_MLX_HOME": str(home)}
        self._env = os_env | ours
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

    def say(self, turn: str) -> None:
        """Type it at the chat's prompt, and see it taken."""
        self.type(turn)
        self.until(lambda text: f"> {turn}\n" in text and not _PROMPT.search(text))

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
        """Wait for the chat's prompt: nothing is typed yet, and below it is the line of keys."""
        return self.until(lambda text: _PROMPT.search(text) is not None)

    def close(self) -> None:
        subprocess.run(["tmux", "-L", self._socket, "kill-server"], timeout=30, check=False)


@pytest.fixture
def pane(tmp_path: Path) -> Iterator[Pane]:
    pane = Pane(tmp_path)
    yield pane
    pane.close()


def after(text: str, turn: str) -> str:
    """What stands below a turn: the answer, and a line about it."""
    below = text.split(f"> {turn}\n")[-1]
    return "\n".join(line.rstrip() for line in below.split("\n>")[0].split("\n"))


def answered(text: str, turn: str) -> str:
    """The same without that line."""
    answer, cost = after(text, turn).rsplit("\n", 1)
    assert "tokens/step" in cost
    return answer


def answer(script: str, width: int = 80) -> str:
    out = StringIO()
    written = MarkdownStream(out, width)
    for text in scripted.SCRIPTS[script]:
        written.feed(text)
    written.finish()
    return out.getvalue().rstrip("\n")


def drawn(text: str) -> bool:
    return "/≤" in text


def test_nano_answers_once(pane: Pane) -> None:
    pane.type(NANO)
    pane.asked()
    pane.type("hello")
    pane.until(lambda text: "tokens/step" in text)
    text = pane.asked()
    assert answered(text, "hello").startswith("I am nano")
    assert text.count("I am nano") == 1
    assert "block 1" not in text
    assert pane.modes() == "1 1"


def test_the_canvas_is_drawn_and_leaves_the_answer(pane: Pane) -> None:
    pane.type(SCRIPTED)
    pane.asked()
    for turn in ("long", "blocks", "wide", "lines", "harm"):
        pane.say(turn)
        pane.until(drawn)
        assert pane.modes() == "0 1"
        assert answered(pane.asked(), turn) == answer(turn)
        assert pane.modes() == "1 1"


def test_the_terminal_changes_its_size_meanwhile(pane: Pane) -> None:
    pane.type(SLOW)
    pane.asked()
    pane.say("long")
    pane.until(drawn)
    for columns, lines in ((80, 12), (80, 5), (100, 30), (120, 24)):
        pane.resize(columns, lines)
        time.sleep(0.2)
        assert pane.text().split("\n")[-1].lstrip("↑0123456789 ").startswith("block 1")
    assert answered(pane.asked(), "long") == answer("long", 120)


def test_a_terminal_that_gets_narrow_wraps_what_it_had(pane: Pane) -> None:
    pane.type(SLOW)
    pane.asked()
    pane.say("long")
    pane.until(drawn)
    pane.resize(20, 24)
    pane.until(lambda text: re.search("^↑[0-9]+ block 1", text, re.M) is not None)
    pane.until(lambda text: "tokens/step" in text)
    # Rows that the terminal pushed into its history are beyond reach; the answer is whole.
    text = pane.until(lambda text: text.count(">") >= 2)
    assert answer("long", 20) in after(text, "long")
    assert after(text, "long").count("block 1") <= 1
    assert pane.modes() == "1 1"


def test_ctrl_c_stops_the_turn_only(pane: Pane) -> None:
    pane.type(f"stty -a | md5sum; {SCRIPTED}; stty -a | md5sum")
    pane.asked()
    pane.say("long")
    pane.until(drawn)
    pane.press("C-c")
    text = pane.asked()
    assert after(text, "long") == "dg-mlx: stopped; the turn is forgotten"
    assert pane.modes() == "1 1"
    pane.say("short")
    assert answered(pane.asked(), "short") == answer("short")
    pane.press("C-d")
    text = pane.until(lambda text: text.count("  -") == 2)
    sums = re.findall("[0-9a-f]{32}", text)
    assert sums[0] == sums[1]  # echo and all the rest are as before


def test_without_colours_and_without_a_canvas(pane: Pane) -> None:
    pane.type(f"NO_COLOR=1 {SLOW}")
    pane.asked()
    pane.say("long")
    pane.until(lambda text: "step 5/" in text)
    shown = pane.text("-e")
    assert "\x1b[38" not in shown
    assert re.search(r"\x1b\[(0;)?4m", shown)
    pane.asked()
    pane.type("/canvas off")
    pane.until(lambda text: "/canvas off\n>" in text)
    pane.say("blocks")
    pane.until(lambda text: re.search(r"block 1 · step \d+/28", text) is not None)
    assert answered(pane.asked(), "blocks") == "".join(scripted.SCRIPTS["blocks"])
