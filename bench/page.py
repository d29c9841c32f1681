"""What the page costs: how late frames are, how large, how smoothly they are painted.

    python bench/page.py [--tries 3] [--chromium PATH]

An engine that makes a step of 256 tokens thirty times a second is watched in a headless browser, at
the machine's speed and slowed six times. "Late" is from the moment a step is made to the moment it
is painted; "stop" from the click to the run's end on the page. The cost of a frame is that of
painting it, in the first and in the last block of twenty. The last lines are nano's own time for a
prompt with a page that watches and without, in turn.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from machine import processor
from playwright.sync_api import Browser, Page, sync_playwright

TESTS = Path(__file__).parents[1] / "tests"
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
ARGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
SLOWED = 6
PUZZLE = "A 1.3.\nB .41.\nC ....\nD ..21"

WATCH = """() => {
  const canvas = document.querySelector("#dg-canvas [data-testid=canvas]");
  window.painted = [];
  new MutationObserver(() => {
    const k = Number(canvas.dataset.k);
    if (painted.at(-1)?.[0] === k) return;
    const entry = [k, 0];
    painted.push(entry);
    const channel = new MessageChannel(); // after the frame is on its way to the screen
    channel.port1.onmessage = () => {
      entry[1] = (performance.timeOrigin + performance.now()) / 1000;
    };
    channel.port2.postMessage(0);
  }).observe(canvas, {attributeFilter: ["data-k"]});
}"""
STOP = """() => new Promise(done => {
  const canvas = document.querySelector("#dg-canvas [data-testid=canvas]");
  const began = performance.now();
  new MutationObserver(() => canvas.dataset.done === "1" && done(performance.now() - began))
    .observe(canvas, {attributeFilter: ["data-done"]});
  document.querySelector("#dg-canvas [data-testid=stop]").click();
})"""
COST = """async first => {
  const canvas = DGPage.canvasOf("dg-canvas");
  const times = [];
  for (let k = first; k < first + 45; k++) {
    canvas.show(k);
    await new Promise(requestAnimationFrame);
    const began = performance.now();
    canvas._paint();
    times.push(performance.now() - began);
  }
  return times;
}"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    args = parser.parse_args()
    print(f"{processor()}, Python {sys.version.split()[0]}, best of {args.tries}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.chromium, args=ARGS)
        print(f"Chromium {browser.version}")
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "steps.txt"
            with serving("--home", folder, "--log", str(log)) as url:
                for slowed in (1, SLOWED):
                    frames(browser, url, log, slowed, args.tries)
        with tempfile.TemporaryDirectory() as folder, serving("--home", folder) as url:
            long(browser, url)
        browser.close()
        watched(playwright, args)


@contextmanager
def serving(*options: str) -> Iterator[str]:
    """The address of a page with a paced engine."""
    command = [sys.executable, str(TESTS / "browser" / "serving.py"), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None, "the page did not start"
        yield found[0]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


@contextmanager
def opened(browser: Browser, url: str, slowed: int) -> Iterator[Page]:
    """The page, in a browser that is slowed."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(url)
    page.wait_for_selector("#dg-box textarea:not([disabled])")
    page.wait_for_function("new URL(location.href).searchParams.get('c')")
    page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": slowed})
    yield page
    context.close()


def send(page: Page, text: str) -> None:
    """Ask for an answer."""
    page.fill("#dg-box textarea", text)
    page.press("#dg-box textarea", "Enter")


def done(page: Page) -> None:
    """Wait for the answer's end."""
    canvas = "#dg-canvas [data-testid=canvas][data-done='1']"
    page.wait_for_selector(canvas, state="attached")
    page.wait_for_selector("#dg-box .stop-button", state="detached")


def frames(browser: Browser, url: str, log: Path, slowed: int, tries: int) -> None:
    """Lateness, size, rate and stops at thirty steps a second."""
    late, last, rates, stops, sizes = [], [], [], [], []
    for _ in range(tries):
        with opened(browser, url, slowed) as page:
            before = len(log.read_text().splitlines()) if log.exists() else 0
            sent: list[int] = []
            page.on("websocket", sizes_in(sent))
            page.evaluate(WATCH)
            send(page, "blocks")
            page.wait_for_selector("#dg-canvas [data-testid=canvas][data-k='59']")
            done(page)
            made = [float(line) for line in log.read_text().splitlines()[before:]]
            painted = [(k, at) for k, at in page.evaluate("painted") if k >= 0 and at]
            delays = [at - made[int(k)] for k, at in painted]
            late.append(statistics.median(delays))
            last.append(delays[-1])
            rates.append((len(painted) - 1) / (painted[-1][1] - painted[0][1]))
            sizes.append(sum(sent) / page.evaluate("DGPage.canvasOf('dg-canvas').frames.length"))
            send(page, "endless")
            page.wait_for_function("painted.at(-1)[0] >= 20 && painted.at(-1)[0] < 59")
            stops.append(page.evaluate(STOP) / 1000)
            done(page)
    print(
        f"slowed {slowed}x: late {1e3 * min(late):.0f} ms (the last frame {1e3 * min(last):.0f} "
        f"ms), {min(sizes):.0f} bytes/frame, {max(rates):.1f} painted/s, "
        f"stop {1e3 * min(stops):.0f} ms"
    )


def sizes_in(sent: list[int]) -> Any:
    """Notes the bytes of each message of a WebSocket."""

    def note(data: str | bytes) -> None:
        sent.append(len(data.encode() if isinstance(data, str) else data))

    return lambda socket: socket.on("framereceived", note)


def long(browser: Browser, url: str) -> None:
    """What a frame costs in the first and the last block of twenty."""
    with opened(browser, url, 1) as page:
        send(page, "blocks20")
        page.wait_for_selector("#dg-canvas [data-testid=canvas][data-k='959']")
        done(page)
        early, late = (statistics.median(page.evaluate(COST, k)) for k in (2, 914))
    print(f"20 blocks: {early:.2f} ms a frame in the first, {late:.2f} ms in the last", end="")
    print(f" ({late / early:.2f} times)")


def watched(playwright: Any, args: argparse.Namespace) -> None:
    """Nano's time for a prompt with a page that paints every step, and with none."""
    from dg_mlx.app import server
    from dg_mlx.app.asked import Asked
    from dg_mlx.app.desk import Desk

    import dg_mlx
    from dg_mlx.serve.models import Models

    desk = Desk(Models(dg_mlx.load, "nano"), None)
    address = server.Address(port=0)
    with server.listening(address) as listener, server.temporary_files():
        app = server.build(desk, address)
        thread = threading.Thread(target=server.serve, args=(app, listener), daemon=True)
        thread.start()

        def took(watch: Any = lambda run: None) -> float:
            run = desk.try_out(PUZZLE, Asked(seed=1, stepwise=True), text=PUZZLE)
            while not run.control.paused:
                time.sleep(0.001)
            watch(run)  # it is held until then
            run.resume()
            assert run.over.wait(60)
            (done,) = [frame for frame in run.frames() if frame["kind"] == "done"]
            return float(done["stats"]["denoise_s"] + done["stats"]["commit_s"])

        browser = playwright.chromium.launch(executable_path=args.chromium, args=ARGS)
        with opened(browser, server.url(listener), 1) as page:

            def watch(run: Any) -> None:
                path = f"/dg/runs/{run.id}/ws"
                page.evaluate("path => DGPage.canvasOf('dg-canvas').follow(path)", path)
                held = "#dg-canvas [data-testid=canvas][data-state=paused]"
                page.wait_for_selector(held, state="attached")

            took(), took(watch)
            alone, beside = zip(*[(took(), took(watch)) for _ in range(20)], strict=True)
        browser.close()
        desk.close()
    one, two = statistics.median(alone), statistics.median(beside)
    print(f"nano: {1e3 * one:.0f} ms alone, {1e3 * two:.0f} ms watched ({two / one:.2f} times)")


if __name__ == "__main__":
    main()
