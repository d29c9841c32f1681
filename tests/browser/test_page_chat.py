"""The chat in a browser: messages, their versions, conversations, and who has no mouse or sight."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import BOX, CANVAS, MESSAGE, Server, Tab

pytestmark = pytest.mark.browser
Tabs = Callable[..., Tab]


def button(tab: Tab, label: str) -> Any:
    """A button at the messages."""
    return tab.page.locator(f"#dg-messages button[aria-label*='{label}' i]")


def listed(tab: Tab, text: str) -> Any:
    """A conversation in the list."""
    return tab.page.locator("li[data-id]", has_text=text)


def test_an_answer_follows_what_was_sent(tab: Tab) -> None:
    assert tab.ask("hello there").endswith("to “hello there”.")
    assert tab.messages[0] == "hello there" and len(tab.messages) == 2
    assert tab.page.input_value(BOX) == ""
    tab.ask("and again")
    assert len(tab.messages) == 4
    assert tab.canvas("stats").text_content().startswith("block 1 · step 20/")
    listed(tab, "hello there").wait_for()


def test_an_empty_message_is_refused_in_a_sentence(tab: Tab) -> None:
    tab.page.press(BOX, "Enter")
    tab.alert("the message is empty")
    assert tab.messages == []


def test_blocks_are_shown_when_they_are_final(tab: Tab) -> None:
    tab.begin("blocks")
    tab.says("in the middle of a sen")
    assert tab.canvas("canvas").get_attribute("data-state") == "live"
    tab.over()
    tab.says("The third is the last: it has 漢字 and 🦊.")


def test_a_thought_is_apart_from_the_answer(tab: Tab) -> None:
    tab.ask("thought")
    assert tab.messages == ["thought", "Thought (5 words)", "The answer."]
    assert "(thought: 5 tokens)" in tab.page.inner_text("#dg-canvas .dg-tokens")


def test_a_tool_is_called_and_its_result_answered(tab: Tab) -> None:
    tab.ask("tool")
    tab.says("Calls weather")
    tab.page.wait_for_selector(f"{BOX}[placeholder='Result of weather']")
    assert tab.ask("sunny") == "The tool says sunny."
    tab.says("Result of weather")
    tab.page.wait_for_selector(f"{BOX}:not([placeholder*=Result])")


def test_retry_edit_undo_redo_and_versions(tab: Tab) -> None:
    first = tab.ask("hello")
    with tab.another():
        button(tab, "retry").first.click()
    assert first not in tab.messages  # what is said anew is not beside what it replaces
    tab.over()
    second = tab.messages[-1]
    assert second != first and len(tab.messages) == 2
    turns = tab.id("turns")
    assert "Answer" in turns.inner_text() and "2/2" in turns.inner_text()
    turns.get_by_label("Version before").click()
    tab.says(first)
    turns.get_by_label("Version after").click()
    tab.says(second)

    button(tab, "edit").first.click()
    tab.page.locator("#dg-messages textarea").fill("good evening")
    with tab.another():
        button(tab, "submit").click()
    tab.over()
    assert tab.messages[0] == "good evening" and "good evening" in tab.messages[1]
    turns.get_by_label("Version before").first.click()
    tab.says(second)
    turns.get_by_label("Version after").first.click()
    tab.says("good evening")

    button(tab, "undo").first.click()
    tab.page.wait_for_selector(MESSAGE, state="detached")
    assert tab.page.input_value(BOX) == "good evening"
    tab.id("redo").click()
    tab.says("good evening")
    assert len(tab.messages) == 2
    tab.id("redo").wait_for(state="detached")


def test_an_earlier_answer_can_be_seen_again(tab: Tab) -> None:
    tab.ask("short")
    early = tab.frames
    tab.ask("blocks")
    assert len(tab.frames) > len(early)
    tab.id("replay").select_option(label="All is well.")
    tab.page.wait_for_function(
        "n => DGPage.canvasOf('dg-canvas').frames.length === n", arg=len(early)
    )
    assert tab.frames == early
    tab.canvas("first").click()
    tab.page.wait_for_selector(f"{CANVAS}[data-k='0']")
    tab.canvas("speed").select_option("4")
    tab.canvas("play").click()
    tab.page.wait_for_selector(f"{CANVAS}[data-k='19']")
    tab.page.reload()
    tab.ready()
    tab.says("The third is the last")
    tab.page.wait_for_selector(f"{CANVAS}[data-done='1']")


def test_recordings_can_be_saved(tab: Tab) -> None:
    tab.ask("short")
    with tab.page.expect_download() as saved:
        tab.id("save-json").first.click()
    document = json.loads(Path(saved.value.path()).read_text())
    assert document["frames"] == tab.frames
    with tab.page.expect_download() as saved:
        tab.id("save-html").first.click()
    assert "<script" in Path(saved.value.path()).read_text()


def test_conversations_are_found_named_deleted_and_restored(tab: Tab) -> None:
    tab.ask("the quick brown fox")
    address = tab.page.url
    tab.id("fresh").click()
    tab.page.wait_for_function("old => location.href !== old", arg=address)
    tab.page.wait_for_selector(MESSAGE, state="detached")
    tab.ask("a lazy dog")

    tab.id("search").fill("brown FOX")
    listed(tab, "lazy dog").wait_for(state="detached")
    listed(tab, "quick brown").locator("[data-testid=open]").click()
    tab.says("the quick brown fox")
    assert tab.page.url == address
    tab.id("search").fill("no such words")
    tab.page.locator("[data-testid=conversations]", has_text="Nothing is found.").wait_for()
    tab.id("search").fill("")

    fox = listed(tab, "quick brown")
    fox.hover()
    fox.locator("[data-testid=rename]").click()
    tab.id("name").fill("About a fox")
    tab.id("name").press("Enter")
    listed(tab, "About a fox").wait_for()
    assert listed(tab, "quick brown").count() == 0

    fox = listed(tab, "About a fox")
    fox.hover()
    fox.locator("[data-testid=remove]").click()
    fox.wait_for(state="detached")
    tab.page.wait_for_selector(MESSAGE, state="detached")  # it was the one that is shown
    assert "About a fox" in tab.id("notice").inner_text()
    tab.id("undo-delete").click()
    tab.says("the quick brown fox")
    listed(tab, "About a fox").wait_for()


def test_conversations_go_to_a_file_and_come_back(tab: Tab, tmp_path: Path) -> None:
    tab.ask("pack my box with jugs")
    row = listed(tab, "pack my box").first
    row.hover()
    row.locator("summary").click()
    saved = {}
    for form in ("json", "md", "html"):
        with tab.page.expect_download() as download:
            row.locator(f"[data-testid=export-{form}]").click()
        saved[form] = Path(download.value.path()).read_bytes()
        assert b"pack my box with jugs" in saved[form]
    tab.id("fresh").click()
    tab.page.wait_for_selector(MESSAGE, state="detached")
    file = {"name": "talk.json", "mimeType": "application/json"}
    chooser = tab.page.locator("#dg-list input[type=file]")
    chooser.set_input_files({**file, "buffer": saved["json"]})
    tab.says("pack my box with jugs")
    assert listed(tab, "pack my box").count() == 2
    assert tab.ask("go on").endswith("to “go on”.")
    tab.allowed.append("400")
    chooser.set_input_files({**file, "buffer": b"no conversation"})
    tab.alert("conversation|JSON|file")
    tab.says("go on")


def test_a_conversation_that_is_not_there_is_told(tabs: Tabs, scripted: Server) -> None:
    tab = tabs(f"{scripted.url}?c=20200101-000000-00000000")
    tab.alert("Here is a new one")
    assert "c=20200101" not in tab.page.url
    assert tab.ask("hello").endswith("to “hello”.")


def test_everything_is_reached_by_keys(tab: Tab) -> None:
    page = tab.page
    page.focus(BOX)
    page.keyboard.type("short")
    with tab.another():
        page.keyboard.press("Enter")
    tab.over()
    focused = "document.activeElement.closest('[data-testid]')?.dataset.testid"
    seen = []
    for _ in range(120):
        page.keyboard.press("Tab")
        seen.append(page.evaluate(focused))
        if seen[-1] == "canvas":
            break
    assert seen[-1] == "canvas", seen
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "document.querySelector('#dg-canvas [data-testid=inspector]').textContent.startsWith('#1 ')"
    )
    while page.evaluate(focused) != "scrub":
        page.keyboard.press("Tab")
    page.keyboard.press("Home")
    page.wait_for_selector(f"{CANVAS}[data-k='0']")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(f"{CANVAS}[data-k='1']")
    page.keyboard.press("End")
    page.wait_for_selector(f"{CANVAS}[data-k='19']")


def test_screen_readers_hear_a_sentence_and_no_noise(tab: Tab) -> None:
    status = tab.canvas("status")
    assert status.get_attribute("role") == "status"
    assert tab.page.locator("#dg-canvas .dg-tokens").first.get_attribute("aria-hidden") == "true"
    tab.page.evaluate(
        """() => { window.heard = [];
        const status = document.querySelector("#dg-canvas [data-testid=status]");
        new MutationObserver(() => heard.push(status.textContent))
          .observe(status, {childList: true, characterData: true, subtree: true}); }"""
    )
    tab.ask("blocks")
    heard = [text for text in tab.page.evaluate("heard") if text]
    assert heard[:3] == ["Generating.", "Block 2.", "Block 3."]
    assert len(heard) == 4 and heard[3].startswith("Response complete, ")


def test_nothing_moves_for_those_who_want_that(tabs: Tabs, scripted: Server) -> None:
    tab = tabs(scripted.url, reduced_motion="reduce")
    tab.ask("short")
    moves = """[...document.querySelectorAll("#dg-canvas .dg *")].map(x => getComputedStyle(x))
        .some(s => [s.transitionDuration, s.animationDuration]
          .some(d => d.split(",").some(t => parseFloat(t) > 0.01)))"""
    assert not tab.page.evaluate(moves)


def test_dark_and_narrow_pages_show_everything(tabs: Tabs, scripted: Server) -> None:
    dark = tabs(scripted.url, color_scheme="dark")
    dark.ask("short")
    assert dark.page.evaluate("document.body.classList.contains('dark')")
    narrow = tabs(scripted.url, viewport={"width": 430, "height": 900})
    narrow.ask("short")
    assert narrow.page.evaluate("document.documentElement.scrollWidth") <= 430
    narrow.canvas("canvas").scroll_into_view_if_needed()
    assert narrow.canvas("canvas").is_visible() and narrow.page.is_visible(BOX)
