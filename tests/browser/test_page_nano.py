"""The page as `dg-mlx ui` serves it, with a real model: what settles, and what is pinned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import CANVAS, Server, Tab

pytestmark = pytest.mark.browser
Tabs = Callable[..., Tab]

PUZZLE = "A 1.3.\nB .41.\nC ....\nD ..21"
SOLVED = "A 1234\nB 3412\nC 2143\nD 4321"


def test_nano_solves_a_board(tabs: Tabs, nano: Server) -> None:
    tab = tabs(nano.url)
    assert tab.ask(PUZZLE) == SOLVED
    tab.canvas("view-board").click()
    tab.page.locator("#dg-canvas .dg-board").wait_for()
    assert tab.frames == tab.stored


def shown(tab: Tab) -> list[str]:
    found: list[str] = tab.page.evaluate(
        """() => { const {shots, texts} = DGPage.canvasOf("dg-canvas")._frames;
          return [...shots.at(-1).g].map(id => String(texts.get(id))); }"""
    )
    return found


def step(tab: Tab) -> None:
    k = int(tab.canvas("canvas").get_attribute("data-k"))
    tab.canvas("step").click()
    tab.page.wait_for_function(
        "([canvas, k]) => Number(document.querySelector(canvas).dataset.k) > k", arg=[CANVAS, k]
    )


@pytest.fixture
def held(tabs: Tabs, nano: Server) -> Any:
    """An answer of nano that is held before its first step."""
    tab = tabs(nano.url)
    tab.page.click("#dg-settings .toggle-button")
    tab.page.check("#dg-stepwise input")
    tab.begin(PUZZLE, steps=0)
    tab.page.wait_for_selector(f"{CANVAS}[data-state=paused]", state="attached")
    step(tab)
    return tab


def test_a_pinned_token_stays_to_the_end(held: Tab) -> None:
    tab = held
    before = shown(tab)
    at = next(i for i, text in enumerate(before) if text.strip() in "1234" and text.strip())
    wanted = "4" if before[at].strip() != "4" else "3"
    tab.canvas("view-cells").click()
    tab.page.locator(f"#dg-canvas .dg-canvas .dg-tokens > [data-i='{at}']").click()
    tab.canvas("popover").locator("textarea").fill(before[at].replace(before[at].strip(), wanted))
    tab.canvas("pin").click()
    step(tab)
    tab.page.wait_for_selector(f"#dg-canvas .dg-tokens > .s4[data-i='{at}']")
    tab.canvas("pause").click()  # it goes on
    tab.over()
    drafts = [f for f in tab.frames if f["kind"] == "draft"]
    (touch,) = [f for f in tab.frames if f["kind"] == "touch"]
    assert touch["what"] == "pin" and touch["positions"] == [at] and len(drafts) > 2
    after = shown(tab)
    assert after[at].strip() == wanted
    assert "".join(after).startswith(tab.messages[-1])
    assert tab.frames == tab.stored


def test_a_held_answer_can_be_stopped_and_the_next_one_made(held: Tab) -> None:
    held.canvas("stop").click()
    held.over()
    assert held.frames[-2]["reason"] == "cancelled"
    held.page.uncheck("#dg-stepwise input")
    assert held.ask(PUZZLE) == SOLVED


def test_a_constraint_holds(tabs: Tabs, nano: Server) -> None:
    tab = tabs(nano.url)
    tab.page.click("#dg-settings .toggle-button")
    tab.page.get_by_text("Constraint on the answer").click()
    tab.page.wait_for_selector("#dg-constraint input[value=none]:checked")
    tab.wait(0.5)  # Gradio draws it twice when it is opened
    tab.page.check("#dg-constraint input[value=regex]", force=True)
    tab.page.fill("#dg-held textarea", "A 4[1-4]{3}")
    tab.page.locator("#dg-verdict", has_text="every answer will fit it").wait_for()
    answer = tab.ask(PUZZLE)
    assert answer.startswith("A 4") and len(answer) == 6
    tab.page.fill("#dg-held textarea", "A (")
    tab.page.locator("#dg-verdict", has_text="✗").wait_for()
