"""A page to test: its server, a browser, and what may not happen in any test."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

SERVING = Path(__file__).with_name("serving.py")
CANVAS = "#dg-canvas [data-testid=canvas]"
BOX = "#dg-box textarea"


@dataclass
class Server:
    """A process that serves the page."""

    command: Sequence[str]
    home: Path
    process: Any = None
    url: str = ""

    def start(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        env = {**os.environ, "DG_MLX_HOME": str(self.home), "PYTHONUNBUFFERED": "1"}
        with (self.home / "said.txt").open("a") as said:
            self.process = subprocess.Popen(
                [sys.executable, *self.command], env=env, stdout=subprocess.PIPE, stderr=said,
                text=True,
            )  # fmt: skip
        found = re.search(r"http://\S+", self.process.stdout.readline())
        assert found, self.said
        self.url = found[0]

    @property
    def said(self) -> str:
        """What it wrote as errors."""
        return (self.home / "said.txt").read_text()

    def kill(self) -> None:
        """As the system does it."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def stop(self) -> None:
        """As Ctrl-C does it."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        finally:
            self.kill()


@contextmanager
def started(home: Path, *command: str) -> Iterator[Server]:
    """A server of the page that stops again."""
    server = Server(command=command, home=home)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@dataclass
class Tab:
    """A tab of the browser that shows the page, and what a user does there."""

    page: Any
    wrong: list[str] = field(default_factory=list)
    """What may not happen in a test."""
    allowed: list[str] = field(default_factory=list)
    """Patterns of what may, in this one."""

    def __post_init__(self) -> None:
        page = self.page
        page.set_default_timeout(30_000)
        page.on("console", lambda said: self._said(said))
        page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        page.on("request", lambda request: self._asked(request.url))
        page.on("websocket", lambda socket: self._asked(socket.url))

    def _said(self, said: Any) -> None:
        if said.type == "error":
            self.wrong.append(f"console: {said.text} {said.location.get('url', '')}")

    def _asked(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob") and parts.hostname not in ("127.0.0.1", None):
            self.wrong.append(f"foreign request: {url}")

    def check(self) -> None:
        unexpected = [w for w in self.wrong if not any(re.search(a, w) for a in self.allowed)]
        assert unexpected == []

    # What a user does.

    def open(self, url: str) -> None:
        self.page.goto(url)
        self.ready()

    def ready(self) -> None:
        """The page is there, and knows its conversation."""
        self.page.wait_for_selector(f"{BOX}:not([disabled])")
        self.page.wait_for_function("new URL(location.href).searchParams.get('c')")

    def send(self, text: str) -> None:
        self.page.fill(BOX, text)
        self.page.press(BOX, "Enter")

    def ask(self, text: str) -> str:
        """Send, and wait; the last bubble."""
        self.begin(text)
        self.over()
        return self.messages[-1]

    def begin(self, text: str, steps: int = 1) -> None:
        """Send, and wait for the first steps."""
        with self.another(steps):
            self.send(text)

    @contextmanager
    def another(self, steps: int = 1) -> Iterator[None]:
        """What is done inside begins a run: wait for its first steps."""
        before = self.run
        yield
        self.page.wait_for_function(
            """([before, steps]) => { const { _path, frames } = DGPage.canvasOf("dg-canvas");
              return _path && _path !== before && frames.length > steps + 1 }""",
            arg=[before, steps],
        )

    def over(self) -> None:
        """Wait until the answer is done, and the page has taken it in."""
        self.page.wait_for_selector(f"{CANVAS}[data-done='1']", state="attached")
        self.page.wait_for_selector("#dg-box .submit-button")
        self.page.wait_for_selector("#dg-box .stop-button", state="detached")

    @property
    def run(self) -> str:
        """The path of the run that is followed."""
        return str(self.page.evaluate('DGPage.canvasOf("dg-canvas")?._path ?? ""'))

    @property
    def frames(self) -> list[dict[str, Any]]:
        """Those that the canvas has."""
        found: list[dict[str, Any]] = self.page.evaluate('DGPage.canvasOf("dg-canvas").frames')
        return found

    @property
    def stored(self) -> list[dict[str, Any]]:
        """Those that the server has of the run."""
        path = self.run.replace("/ws", "/recording")
        answer = self.page.request.get(f"{self.origin}{path}")
        found: list[dict[str, Any]] = answer.json()["frames"]
        return found

    @property
    def origin(self) -> str:
        parts = urlsplit(self.page.url)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def messages(self) -> list[str]:
        """Texts of the bubbles."""
        return [m.inner_text().strip() for m in self.page.query_selector_all(MESSAGE)]

    def says(self, text: str) -> None:
        """Wait for a bubble with this text."""
        self.page.locator(MESSAGE, has_text=text).last.wait_for()

    def alert(self, pattern: str) -> str:
        """Wait for a sentence about what went wrong."""
        box = self.page.locator("[data-testid=alert], .toast-body", has_text=re.compile(pattern))
        box.first.wait_for()
        return str(box.first.inner_text())

    def canvas(self, name: str) -> Any:
        """A part of the canvas, by its test id."""
        return self.page.locator(f"#dg-canvas [data-testid={name}]")

    def id(self, name: str) -> Any:
        """A part of the page, by its test id."""
        return self.page.locator(f"[data-testid={name}]")

    def wait(self, seconds: float = 0.3) -> None:
        self.page.wait_for_timeout(1000 * seconds)


MESSAGE = "#dg-messages .message"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = pytest.importorskip("chromium")
    with chromium.browser() as opened:
        yield opened


@pytest.fixture(scope="session")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The page with a scripted engine at 30 steps a second; its log is `steps.txt`."""
    pytest.importorskip("gradio")
    home = tmp_path_factory.mktemp("scripted")
    options = ["--home", str(home / "talks"), "--log", str(home / "steps.txt"), "--most", "100000"]
    with started(home, str(SERVING), *options) as server:
        yield server


@pytest.fixture(scope="session")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The page as `dg-mlx ui` serves it, with the bundled model."""
    pytest.importorskip("gradio")
    home = tmp_path_factory.mktemp("nano")
    with started(home, *ui()) as server:
        yield server


def ui(*options: str) -> list[str]:
    """The command `dg-mlx ui` on a port that is free."""
    command = "import sys; from dg_mlx.cli import main; sys.exit(main(sys.argv[1:]))"
    return ["-c", command, "ui", "--port", "0", "--no-open", *options]


@pytest.fixture
def tabs(browser: Any) -> Iterator[Callable[..., Tab]]:
    """Opens tabs, each in a context of its own unless it is given one."""
    made: list[Tab] = []
    with ExitStack() as stack:

        def make(url: str | None = None, *, beside: Tab | None = None, **options: Any) -> Tab:
            if beside is None:
                context = browser.new_context(
                    **{"viewport": {"width": 1440, "height": 900}, **options}
                )
                stack.callback(context.close)
            else:
                context = beside.page.context
            made.append(Tab(context.new_page()))
            if url:
                made[-1].open(url)
            return made[-1]

        yield make
        if made:
            made[0].page.wait_for_timeout(50)  # what is on its way arrives
    for tab in made:
        tab.check()


@pytest.fixture
def tab(tabs: Callable[..., Tab], scripted: Server) -> Tab:
    """One on the scripted engine's page."""
    return tabs(scripted.url)


def best_of(tries: int, limit_s: float, measure: Callable[[], float]) -> None:
    """A time limit that one of some tries must keep."""
    taken = []
    for _ in range(tries):
        taken.append(measure())
        if taken[-1] < limit_s:
            return
        time.sleep(0.5)
    raise AssertionError(f"took {taken} s; the limit is {limit_s} s")
