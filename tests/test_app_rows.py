"""A conversation as the bubbles of a chat."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from dg_mlx.app.rows import rows, sending, written
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from talk import Talker, ask, quick_folder

from dg_mlx.conversation import Conversation, Store

CALL = {"type": "function", "id": "call-1", "function": {"name": "weather", "arguments": {"a": 1}}}


def bubbles(talk: Conversation) -> list[tuple[str, str, str]]:
    """(role, content, title)."""
    found = [row.value for row in rows(talk, talk.line)]
    return [(v["role"], v["content"], v.get("metadata", {}).get("title", "")) for v in found]


def test_messages_are_bubbles_in_their_order() -> None:
    talk = Conversation()
    ask(talk, "hello", "good day")
    ask(talk, "again", "good night")
    assert bubbles(talk) == [
        ("user", "hello", ""),
        ("assistant", "good day", ""),
        ("user", "again", ""),
        ("assistant", "good night", ""),
    ]
    assert [row.message for row in rows(talk, talk.line)] == [m.id for m in talk.line]
    assert rows(talk, []) == []


def test_thoughts_calls_and_results_are_folded() -> None:
    talk = Conversation()
    list(talk.ask(Talker(["HMM ", "yes"], calls=[CALL]), "hi"))
    talk.append("tool", "sun", tool_call_id="call-1", name="weather")
    arguments = json.dumps({"a": 1}, indent=1)
    assert bubbles(talk) == [
        ("user", "hi", ""),
        ("assistant", "HMM", "Thought (1 word)"),
        ("assistant", " yes", ""),
        ("assistant", f"```json\n{arguments}\n```", "Calls weather"),
        ("assistant", "```\nsun\n```", "Result of weather"),
    ]


def test_an_answer_that_was_stopped_says_so() -> None:
    talk = Conversation()
    events = talk.ask(Talker(["one", "two"]), "hi")
    for event in events:
        if type(event).__name__ == "Committed":
            break
    events.close()  # type: ignore[attr-defined]
    assert bubbles(talk)[1:] == [
        ("assistant", "one", ""),
        ("assistant", "", "Stopped: the end of this answer is missing"),
    ]


@given(text=st.text(alphabet="`a\n", max_size=30))
def test_no_result_leaves_its_fence(text: str) -> None:
    talk = Conversation()
    list(talk.ask(Talker(["yes"], calls=[CALL]), "hi"))
    talk.append("tool", text, tool_call_id="call-1", name="weather")
    content = rows(talk, talk.line)[-1].value["content"]
    fence, _, rest = content.partition("\n")
    assert set(fence) == {"`"} and rest == f"{text}\n{fence}"
    assert fence not in text


def picture() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(data, "PNG")
    return data.getvalue()


def test_a_picture_is_a_bubble_before_its_text(tmp_path: Path) -> None:
    with quick_folder() as home, Store(home).create() as talk:
        parts = [{"type": "image", "image": picture()}, {"type": "text", "text": "what?"}]
        ask(talk, parts, "a colour")
        image, text, answer = rows(talk, talk.line)
        assert image.message == text.message != answer.message
        path = Path(image.value["content"]["path"])
        assert path.is_file() and path.is_relative_to(home)
        assert (text.value["content"], answer.value["content"]) == ("what?", "a colour")


@pytest.mark.filterwarnings("ignore")  # of libraries, when gradio is imported
def test_a_picture_in_no_folder_is_shown_from_its_bytes() -> None:
    gradio = pytest.importorskip("gradio")
    talk = Conversation()
    ask(talk, [{"type": "image", "image": picture()}], "a colour")
    image: Any = rows(talk, talk.line)[0].value["content"]
    assert isinstance(image, gradio.Image)


def test_what_is_on_its_way_has_no_message_yet() -> None:
    found = sending("what?", ["/tmp/a.png"])
    assert [row.message for row in found] == ["", ""]
    assert [row.value["content"] for row in found] == [{"path": "/tmp/a.png"}, "what?"]
    assert sending(" ", []) == []


def test_what_is_written_is_thought_first() -> None:
    assert written("", "") == []
    (thought,) = written("", " let me see")
    assert thought.value["metadata"] == {"title": "Thought (3 words)", "status": "pending"}
    thought, text = written("so", " let me see")
    assert thought.value["metadata"]["status"] == "done" and text.value["content"] == "so"
    assert {row.message for row in (thought, text)} == {""}
