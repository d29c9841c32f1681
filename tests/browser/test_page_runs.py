"""Answers while they are written: frames, stopping, reloads, many tabs, and what breaks."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import CANVAS, SERVING, Server, Tab, best_of, started

pytestmark = pytest.mark.browser
Tabs = Callable[..., Tab]

PAINTED = """() => { window.painted = [];
  const canvas = document.querySelector("#dg-canvas [data-testid=canvas]");
  new MutationObserver(() => {
    const k = Number(canvas.dataset.k);
    const seconds = (performance.timeOrigin + performance.now()) / 1000;
    if (painted.at(-1)?.[0] !== k) painted.push([k, seconds]);
  }).observe(canvas, {attributeFilter: ["data-k"]}); }"""
"""Notes when which step is shown first."""
STOP = """name => new Promise(done => {
  const canvas = document.querySelector("#dg-canvas [data-testid=canvas]");
  const began = performance.now();
  new MutationObserver(() => canvas.dataset.done === "1" && done(performance.now() - began))
    .observe(canvas, {attributeFilter: ["data-done"]});
  document.querySelector(name).click(); })"""


def drafts(frames: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [frame for frame in frames if frame["kind"] == "draft"]


def numbers(frames: list[dict[str, Any]]) -> list[int]:
    return [frame["n"] for frame in frames]


def test_all_frames_arrive_and_the_last_one_soon(tab: Tab, scripted: Server) -> None:
    steps = scripted.home / "steps.txt"

    def lag() -> float:
        tab.page.evaluate(PAINTED)
        tab.begin("blocks")
        tab.over()
        frames = tab.frames
        assert frames == tab.stored and len(drafts(frames)) == 60
        assert frames[-1]["kind"] == "end" and frames[-1]["message"]
        made = float(steps.read_text().splitlines()[-1])
        last, shown = tab.page.evaluate("painted.at(-1)")
        assert last == 59
        return float(shown - made)

    best_of(3, 0.2, lag)


def test_any_step_can_be_seen_again_as_it_was(tab: Tab) -> None:
    tab.ask("blocks")
    frames = tab.frames
    texts: dict[str, Any] = {}
    for frame in drafts(frames):
        texts |= frame["new"]
    whole: list[int] = []
    for k, frame in enumerate(drafts(frames)):
        if frame["key"]:
            whole = frame["g"]
        else:
            whole = list(whole)
            for at, token in zip(frame["i"], frame["g"], strict=True):
                whole[at] = token
        if k % 7:
            continue
        tab.canvas("scrub").fill(str(k))
        tab.page.wait_for_selector(f"{CANVAS}[data-k='{k}']")
        tab.canvas("view-cells").click()
        cell = tab.page.locator("#dg-canvas .dg-canvas .dg-tokens > span:not(.past):not(.badge)")
        shown = cell.evaluate_all("found => found.map(x => [Number(x.dataset.i), x.textContent])")
        said = {at: text for at, text in shown if text.strip() and at < frame["count"]}
        assert said
        for at, text in said.items():
            known = texts[str(whole[at])]
            assert text == known.strip() or not known.strip() or re.search(r"[\n\t]", known)


@pytest.mark.parametrize("button", ["#dg-canvas [data-testid=stop]", "#dg-box .stop-button"])
def test_stop_ends_an_answer_at_once(tab: Tab, button: str) -> None:
    def stop() -> float:
        tab.begin("endless", steps=3)
        tab.page.wait_for_selector(button)
        taken = float(tab.page.evaluate(STOP, button)) / 1000
        tab.over()
        assert tab.frames == tab.stored
        assert tab.frames[-2]["reason"] == "cancelled"
        return taken

    best_of(3, 0.5, stop)
    assert tab.canvas("status").text_content().startswith("Stopped, ")
    assert tab.ask("and now?").endswith("to “and now?”.")


def test_what_was_final_before_a_stop_is_kept(tab: Tab) -> None:
    tab.begin("endless")
    tab.says("and 99")
    assert tab.page.locator("#dg-box .stop-button").is_visible()  # it goes on
    tab.page.locator("#dg-box .stop-button").click()
    tab.over()
    tab.says("Stopped: the end of this answer is missing")


def test_reload_in_the_middle_follows_the_run_from_its_first_frame(tab: Tab) -> None:
    tab.begin("endless")
    tab.says("and 99")
    run = tab.run
    tab.page.reload()
    tab.ready()
    tab.page.wait_for_selector(f"{CANVAS}[data-state=live]")
    assert tab.run == run
    tab.says("and 99")
    seen = len(tab.frames)
    tab.page.wait_for_function("n => DGPage.canvasOf('dg-canvas').frames.length > n + 5", arg=seen)
    tab.page.locator("#dg-box .stop-button").click()
    tab.over()
    frames = tab.frames
    assert numbers(frames) == list(range(len(frames))) and frames[0]["kind"] == "begin"
    assert frames == tab.stored


def test_two_tabs_follow_one_answer(tab: Tab, tabs: Tabs) -> None:
    tab.begin("endless")
    other = tabs(tab.page.url, beside=tab)
    other.page.wait_for_selector(f"{CANVAS}[data-state=live]")
    other.canvas("stop").click()
    for each in (tab, other):
        each.over()
        assert each.frames == tab.stored


def test_five_tabs_are_alive_at_once(tabs: Tabs, scripted: Server) -> None:
    five = [tabs(scripted.url)]
    five += [tabs(scripted.url, beside=five[0]) for _ in range(4)]
    for each in five:
        each.page.bring_to_front()
        each.begin("endless")
    assert len({each.run for each in five}) == 5
    # A tab in the background does not paint, but it takes what comes.
    for _ in range(2):
        before = [len(each.frames) for each in five]
        for each, count in zip(five, before, strict=True):
            each.page.wait_for_function(
                "n => DGPage.canvasOf('dg-canvas').frames.length > n + 3", arg=count, polling=50
            )
    for each in five:
        each.page.bring_to_front()
        each.canvas("stop").click()
        each.over()
        assert each.frames == each.stored


def test_an_engine_that_fails_says_so_and_the_next_prompt_works(tab: Tab) -> None:
    tab.begin("fail")
    tab.over()
    said = "this run failed (RuntimeError: the engine broke); try again."
    assert tab.canvas("said").inner_text() == said
    assert tab.canvas("status").text_content() == said
    assert tab.messages == []
    tab.page.wait_for_function("document.querySelector('#dg-box textarea').value === 'fail'")
    assert tab.ask("go on").endswith("to “go on”.")


def test_an_engine_that_refuses_says_why(tab: Tab) -> None:
    tab.send("refuse")
    tab.canvas("said").filter(has_text="refused").wait_for()
    tab.over()
    assert tab.canvas("said").inner_text() == "this prompt is refused; ask differently."
    assert tab.ask("go on").endswith("to “go on”.")


def test_a_killed_server_is_told_and_another_one_goes_on(tabs: Tabs, tmp_path: Path) -> None:
    options = [str(SERVING), "--home", str(tmp_path / "talks")]
    with started(tmp_path / "first", *options) as server:
        tab = tabs(server.url)
        tab.allowed += ["ERR_CONNECTION_REFUSED", "WebSocket", "Failed to load resource"]
        tab.ask("remember this")
        tab.begin("endless")
        server.kill()
        tab.page.wait_for_selector(f"{CANVAS}[data-state=lost]")
        assert tab.canvas("said").inner_text() == "connection lost; trying again"
        port = server.url.rstrip("/").rpartition(":")[2]
    with started(tmp_path / "second", *options, "--port", port):
        tab.canvas("said").filter(has_text="gone").wait_for()
        said = "this run is gone: the server was started again"
        assert tab.canvas("said").inner_text() == said
        assert tab.canvas("status").text_content() == said
        tab.page.reload()
        tab.ready()
        tab.says("remember this")
        assert tab.ask("next").endswith("to “next”.")


def test_a_long_reply_costs_no_more_at_its_end(tabs: Tabs, tmp_path: Path) -> None:
    with started(tmp_path, str(SERVING), "--home", str(tmp_path / "talks"), "--step", "0.005") as s:
        tab = tabs(s.url)
        tab.begin("blocks20", steps=40)
        nodes = tab.page.evaluate("document.querySelectorAll('#dg-canvas *').length")
        tab.page.wait_for_selector(f"{CANVAS}[data-done='1']", timeout=120_000)
        tab.over()
        frames = tab.frames
        assert len(drafts(frames)) == 20 * 48 and frames == tab.stored
        assert tab.page.evaluate("document.querySelectorAll('#dg-canvas *').length") <= nodes + 10
        took = tab.page.evaluate(REPAINT)
        assert took["late"] < 4 * took["early"] + 5, took


REPAINT = """async () => {
  const canvas = DGPage.canvasOf("dg-canvas");
  const cost = async first => {
    const times = [];
    for (let k = first; k < first + 24; k++) {
      canvas._show(k);
      const began = performance.now();
      canvas._paint();
      times.push(performance.now() - began);
      await new Promise(requestAnimationFrame);
    }
    return times.sort((a, b) => a - b)[12];
  };
  await cost(100);
  return {early: await cost(50), late: await cost(920)};
}"""


def test_steps_are_shown_in_order(tab: Tab) -> None:
    tab.page.evaluate(PAINTED)
    tab.begin("short")
    tab.over()
    shown = [k for k, _ in tab.page.evaluate("painted") if k >= 0]
    assert shown == sorted(set(shown)) and shown[-1] == 19
