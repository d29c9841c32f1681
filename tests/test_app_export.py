"""An exported recording: one file that asks for nothing."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from subprocess import run
from typing import Any

import pytest
from dg_mlx.app.export import to_html
from recorded import Tape, recorded

HOSTILE = "</script><script>alert(1)</script><!-- \u2028 & é 🦊"


def document(tape: Tape) -> dict[str, Any]:
    return {"format": "dg-mlx recording", "version": 1, "frames": tape.frames}


def test_page_holds_the_recording_as_it_is() -> None:
    recording = document(recorded("An answer.", length=16, prompt=HOSTILE))
    page = to_html(recording, title="t")
    found = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S)
    assert found is not None
    assert json.loads(found[1]) == recording


def test_texts_of_others_are_never_markup() -> None:
    page = to_html(document(recorded(HOSTILE, length=64, prompt=HOSTILE)), title=HOSTILE)
    assert "<script>alert" not in page
    assert page.count("</script>") == page.count("<script") == 2


def test_page_may_fetch_nothing() -> None:
    page = to_html(document(recorded("An answer.", length=16)), title="t")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy[1] and "http" not in policy[1]
    assert not re.search(r"<(link|img|iframe)|\ssrc=|@import|url\(", page)


def test_answer_is_readable_without_scripts() -> None:
    page = to_html(document(recorded("First, ", "then <b>.", length=16)), title="My <title>")
    assert "First, then &lt;b&gt;.</pre>" in page
    assert "<title>My &lt;title&gt;</title>" in page


def test_edit_shows_its_text() -> None:
    tape = recorded("words", length=16)
    tape.tell("edited", text="all words", spans=[[4, 9]], fills=["words"])
    assert ">all words</pre>" in to_html(document(tape), title="t")


def test_exporting_needs_no_gradio() -> None:
    code = "import sys, dg_mlx.app.export; sys.exit('gradio' in sys.modules)"
    assert run([sys.executable, "-c", code], timeout=120).returncode == 0


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_file_opens_by_itself(tmp_path: Path, scheme: str) -> None:
    chromium = pytest.importorskip("chromium")
    path = tmp_path / "answer.html"
    path.write_text(
        to_html(document(recorded("An answer.", length=16)), title="t"), encoding="utf-8"
    )
    with chromium.browser() as browser, chromium.opened(browser, color_scheme=scheme) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("[data-testid=canvas][data-done='1']")
        assert page.locator(".dg-canvas > .dg-tokens").text_content() == "An answer."
        page.locator("[data-testid=scrub]").fill("0")
        page.wait_for_selector("[data-testid=canvas][data-k='0']")
        paper = page.evaluate("getComputedStyle(document.querySelector('.dg')).backgroundColor")
        assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(17, 19, 22)"}[scheme]
        assert asked == [path.as_uri()]
