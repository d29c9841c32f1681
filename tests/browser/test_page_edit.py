"""The tabs beside the chat: edits in place, and comparisons, with nano."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import Server, Tab

pytestmark = pytest.mark.browser
Tabs = Callable[..., Tab]

PUZZLE = "A 1.3.\nB .41.\nC ....\nD ..21"
SELECT = """([start, end]) => {
  const text = document.querySelector("[data-testid=text]");
  text.focus();
  text.setSelectionRange(start, end);
}"""


@pytest.fixture
def editor(tabs: Tabs, nano: Server) -> Tab:
    """The tab of edits, with a text in which a digit is missing."""
    tab = tabs(nano.url)
    tab.page.get_by_role("tab", name="Edit in place").click()
    tab.id("text").fill("🦊 A 1.34\nB 3412")
    return tab


def rewrite(tab: Tab) -> None:
    """With the keys, what stands for the missing digit: two units of UTF-16 come before it."""
    tab.page.evaluate(SELECT, [6, 7])
    tab.page.keyboard.press("Control+e")
    tab.id("accept").wait_for()


def test_only_what_is_selected_changes(editor: Tab) -> None:
    rewrite(editor)
    assert editor.id("text").input_value() == "🦊 A 1.34\nB 3412"
    removed, put = (editor.id("diff").locator(tag).inner_text() for tag in ("del", "ins"))
    assert removed == "."
    editor.id("accept").click()
    assert editor.id("text").input_value() == f"🦊 A 1{put}34\nB 3412"
    editor.id("undo-edit").click()
    assert editor.id("text").input_value() == "🦊 A 1.34\nB 3412"


def test_an_edit_can_be_rejected_and_tried_again(editor: Tab) -> None:
    rewrite(editor)
    editor.id("reject").click()
    assert editor.id("text").input_value() == "🦊 A 1.34\nB 3412"
    rewrite(editor)
    editor.id("retry-edit").click()
    editor.page.wait_for_selector("[data-testid=accept]", state="hidden")
    editor.id("accept").wait_for()


def test_nothing_selected_is_said(editor: Tab) -> None:
    editor.page.evaluate(SELECT, [3, 3])
    editor.id("rewrite").click()
    assert "Nothing is selected" in editor.id("edit-status").inner_text()


def compare(tab: Tab) -> Any:
    tab.page.get_by_role("tab", name="Compare").click()
    tab.page.fill("#dg-compare-prompt textarea", PUZZLE)
    tab.page.click("#dg-compare-run")
    table = tab.id("comparison").locator("table")
    table.wait_for()
    return table


def test_two_settings_side_by_side(tabs: Tabs, nano: Server) -> None:
    tab = tabs(nano.url)
    table = compare(tab)
    assert table.locator("tr").nth(0).locator("th").all_inner_texts() == ["", "A", "B"]
    steps = [frames(tab, side)[0]["settings"]["max_denoising_steps"] for side in "ab"]
    assert steps == [48, 16]
    tab.page.locator("#dg-canvas-a [data-testid=scrub]").fill("0")
    tab.page.wait_for_selector("#dg-canvas-b [data-testid=canvas][data-k='0']", state="attached")


def test_the_order_of_one_token_at_a_time(tabs: Tabs, nano: Server) -> None:
    tab = tabs(nano.url)
    tab.page.get_by_role("tab", name="Compare").click()
    tab.page.locator("#dg-compare-b label").nth(1).click()
    compare(tab)
    canvas = tab.page.locator("#dg-canvas-b")
    canvas.get_by_text("Not a measurement").wait_for()
    assert "tok/s" not in canvas.locator("[data-testid=stats]").inner_text()
    tokens = frames(tab, "a")[-2]["stats"]["tokens"]
    assert f"of {tokens}" in canvas.locator("[data-testid=stats]").inner_text()


def frames(tab: Tab, side: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tab.page.evaluate(f"DGPage.canvasOf('dg-canvas-{side}').frames")
    return found
