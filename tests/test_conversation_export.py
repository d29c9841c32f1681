"""Conversations as files: Markdown, pages, JSON and back, and what others wrote."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from PIL import Image
from talk import Talker, ask, texts

from dg_mlx.conversation import Conversation, Store, export, import_, to_html, to_json, to_markdown
from dg_mlx.errors import ConversationError, DGError, MediaError, PromptError, StoreError

GIF = b"GIF89a\x01\x00\x01\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"
URI = "data:image/gif;base64," + base64.b64encode(GIF).decode()
CALL = {"type": "function", "id": "c", "function": {"name": "weather", "arguments": {"in": "`x`"}}}


# JSON and back -----------------------------------------------------------------------------------

text = st.text(st.characters(), max_size=20) | st.sampled_from(
    ["\ud800", "\x00\x1b[2J", "\u202e", "\u2028\u0085\n\r", "</script>", '"\\', "🦊", ""]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
objects = st.dictionaries(text, values, max_size=3)
files = st.binary(max_size=50).map(lambda data: (hashlib.sha256(data).hexdigest() + ".png", data))


@st.composite
def trees(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A conversation in our format, and its files."""
    known: list[str | None] = [None]
    messages, media = [], {}
    ids = st.integers(1, 50).map(str) | st.text(
        st.characters(codec="utf-8"), min_size=1, max_size=9
    )
    for id in draw(st.lists(ids, max_size=8, unique=True)):
        parts: list[dict[str, Any]] = [{"type": "text", "text": draw(text)}]
        for name, data in draw(st.lists(files, max_size=2)):
            media[name] = data
            parts.append({"type": draw(st.sampled_from(["image", "video"])), "file": name})
        time = draw(st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1))).replace(tzinfo=UTC)
        message: dict[str, Any] = {
            "id": id,
            "parent": draw(st.sampled_from(known)),
            "role": draw(st.sampled_from(["user", "assistant", "tool"])),
            "content": draw(text | st.just(parts) | objects),
            "time": time.isoformat(),
        }
        call = {"function": {"name": draw(text), "arguments": draw(objects)}}
        rest = {
            "thought": text.filter(bool),
            "tool_calls": st.just([call]),
            "reason": st.sampled_from(["end", "length", "cancelled", "tool_call"]),
            "model": text.filter(bool),
            "settings": objects.filter(bool),
            "seed": st.integers(),
            "figures": objects.filter(bool),
            "tool_call_id": text.filter(bool),
            "name": text.filter(bool),
        }
        chosen = draw(st.sets(st.sampled_from(sorted(rest))))
        message |= {key: draw(rest[key]) for key in rest if key in chosen}
        messages.append(message)
        known.append(id)
    used = [
        part["file"]
        for m in messages
        if isinstance(m["content"], list)
        for part in m["content"][1:]
    ]
    data = {
        "format": "dg-mlx conversation",
        "version": 1,
        "title": draw(text),
        "system": draw(text),
        "head": draw(st.sampled_from(known)),
        "messages": messages,
        "media": {name: base64.b64encode(media[name]).decode() for name in dict.fromkeys(used)},
    }
    return data, media


@settings(deadline=None)
@given(trees())
def test_json_and_back(made: tuple[dict[str, Any], dict[str, bytes]]) -> None:
    data, media = made
    first = json.dumps(data)
    (talk,) = import_(first)
    second = to_json(talk)
    second.encode()
    assert json.loads(second) == json.loads(first)
    (again,) = import_(second.encode())
    assert to_json(again) == second
    for name in data["media"]:
        assert talk.journal.media.read(name) == media[name]
    bare = to_json(talk, media=False)
    del data["media"]
    assert json.loads(bare) == json.loads(json.dumps(data))
    assert to_json(import_(bare)[0], media=False) == bare
    to_html(talk).encode()
    to_markdown(talk)


@settings(deadline=None, max_examples=30)
@given(trees())
def test_what_is_imported_is_saved_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[dict[str, Any], dict[str, bytes]]
) -> None:
    store = Store(tmp_path_factory.mktemp("home"))
    (talk,) = import_(json.dumps(made[0]))
    store.keep(talk)
    talk.close()
    if talk.tree.messages:
        with store.load(talk.id) as again:
            assert again.damaged == 0
            assert to_json(again) == to_json(talk)


def test_an_import_goes_on() -> None:
    talk = Conversation(system="be brief")
    ask(talk, "hi", "one")
    list(talk.regenerate(Talker(["two"])))
    talk.switch("2")
    (again,) = import_(to_json(talk))
    ask(again, "more", "three")
    assert texts(again) == ["hi", "one", "more", "three"]
    assert [m.text for m in again.branches("2")] == ["one", "two"]


@pytest.mark.parametrize("ids", [("7", "3"), ("a", "1"), ("9" * 64, "0009"), ("²", "2")])
def test_new_ids_are_none_of_the_imported_ones(ids: tuple[str, str]) -> None:
    talk = Conversation()
    ask(talk, "hi", "one")
    data = json.loads(to_json(talk))
    data["head"] = data["messages"][1]["id"] = ids[1]
    data["messages"][0]["id"] = data["messages"][1]["parent"] = ids[0]
    (again,) = import_(json.dumps(data))
    for _ in range(5):
        ask(again, "more", "two")
    assert len(again.line) == 12
    assert to_json(import_(to_json(again))[0]) == to_json(again)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "is of version 2 and this dg-mlx reads 1; update dg-mlx"),
        ({"version": None}, "is of version None"),
        ({"title": 3}, "damaged ('title' is 3); export it again"),
        ({"more": 3}, "damaged ('more' is 3)"),
        ({"head": "9"}, "damaged (its head is '9')"),
        ({"head": []}, "damaged (its head is [])"),
        ({"messages": [3]}, "damaged (message 1: a message is not an object)"),
        ({"media": {"a": "!"}}, "the bytes of 'a' are not those of its name"),
        ({"media": {"a": None}}, "the bytes of 'a' are not those of its name"),
        ({"media": {"a": "aGk="}}, "the bytes of 'a' are not those of its name"),
    ],
)
def test_a_damaged_export(change: dict[str, Any], message: str) -> None:
    talk = Conversation()
    ask(talk, "hi", "one")
    with pytest.raises(ConversationError, match=re.escape(message)):
        import_(json.dumps(json.loads(to_json(talk)) | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"role": "system"}, "'system' is none of user, assistant, tool"),
        ({"time": "noon"}, "Invalid isoformat string: 'noon'"),
        ({"parent": "9"}, "there is no message '9'"),
        ({"parent": 0}, "0 where an id is expected"),
        ({"content": 3}, "3 where str or dict is expected"),
        ({"content": [{"type": "image", "file": "../../x"}]}, "'../../x' is not a file's name"),
        ({"content": [{"type": "text"}]}, "is not a part"),
        ({"tool_calls": [{}]}, "{} is not a tool call"),
        ({"seed": True}, "True where int is expected"),
        ({"color": "red"}, "a message has 'color', which this version does not know"),
        ({"id": "1"}, "there are two messages '1'"),
    ],
)
def test_a_damaged_message(change: dict[str, Any], message: str) -> None:
    talk = Conversation()
    ask(talk, "hi", "one")
    data = json.loads(to_json(talk))
    data["messages"][1] |= change
    with pytest.raises(ConversationError, match=re.escape(message)):
        import_(json.dumps(data))
    del data["messages"][1]["role"]
    data["messages"][1].pop("color", None)
    with pytest.raises(ConversationError, match="message 2: a message has no role"):
        import_(json.dumps(data))


# What others wrote -------------------------------------------------------------------------------

OPENAI = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": [{"type": "text", "text": "weather?"},
                                 {"type": "image_url", "image_url": {"url": URI}}]},
    {"role": "assistant", "content": None, "refusal": None, "tool_calls": [
        {"id": "c", "type": "function",
         "function": {"name": "weather", "arguments": '{"in": "Bern"}'}}]},
    {"role": "tool", "tool_call_id": "c", "content": "sun"},
    {"role": "assistant", "content": "Sunny.", "weight": 1, "reasoning_content": "hm"},
]  # fmt: skip


@pytest.mark.parametrize(
    "written",
    [
        json.dumps(OPENAI),
        json.dumps({"messages": OPENAI, "tools": []}, indent=2),
        "\ufeff" + "\n".join(map(json.dumps, OPENAI)),
        json.dumps({"messages": OPENAI}) + "\r\n\r\n",
    ],
)
def test_openai(written: str) -> None:
    (talk,) = import_(written)
    assert talk.system == "be brief"
    assert texts(talk) == ["weather?", "", "sun", "Sunny."]
    assert talk.line[3].thought == "hm"
    messages = talk.messages()
    assert messages[1]["content"][1] == {"type": "image", "image": GIF}
    assert messages[2]["tool_calls"][0]["function"]["arguments"] == {"in": "Bern"}
    assert messages[3] == {"role": "tool", "tool_call_id": "c", "content": "sun"}
    ask(talk, "thanks", "yes")
    assert to_json(import_(to_json(talk))[0]) == to_json(talk)


def test_lines_of_chats_and_single_messages() -> None:
    one, two = ({"messages": [{"role": "user", "content": str(i)}]} for i in range(2))
    talks = import_(f"{json.dumps(one)}\n\n{json.dumps(two)}\n".encode())
    assert [texts(talk) for talk in talks] == [["0"], ["1"]]
    (talk,) = import_('{"role": "user", "content": "a\\u2028b"}')
    assert texts(talk) == ["a\u2028b"]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("", "the text is empty"),
        ("hello", "line 1 is not JSON"),
        ('{"role": "user", "content": "x"}\n{', "line 2 is not JSON"),
        (b"\xff\xfe", "the file is not UTF-8 text"),
        ("[" * 100_000, "line 1 is not JSON (it is nested too deeply)"),
        ("NaN", "line 1 is not JSON (NaN is not a number of JSON)"),
        ("3", "3 is no conversation"),
        ("[]", "[] is no conversation"),
        ('{"messages": 3}', "is no conversation"),
        ("[3]", "message 0 is 3; write"),
        ('[{"role": "clown"}]', "message 0 has role 'clown'"),
        ('[{"role": "user", "content": ""}]', "message 0 (user) is empty"),
        ('[{"role": "tool", "content": "x"}]', "message 0 (tool) answers no call"),
        ('[{"role": "user", "content": "x", "audio": 1}]', "has 'audio', which has no effect"),
        (
            '[{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]',
            "message 1 is from the system; only the first can be",
        ),
        (
            '[{"role": "user", "content": [{"type": "image", "image": "/etc/passwd"}]}]',
            "a message shows the image '/etc/passwd'; an import may only hold pictures as data:",
        ),
        (
            '[{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}]',
            "a message shows the video 'a.mp4'",
        ),
        (
            '[{"role": "user", "content": [{"type": "image", "image": "data:;base64,eA=="}]}]',
            "is not a picture",
        ),
        (
            '[{"role": "assistant", "content": "x", "reasoning": 3}]',
            "message 0 cannot be imported: a message cannot be read (3 where str is expected)",
        ),
        (
            '[{"role": "assistant", "tool_responses": [1]}]',
            "message 0 has tool_responses; write a tool message for each",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_imported(written: str | bytes, message: str) -> None:
    with pytest.raises(DGError, match=re.escape(message)) as found:
        import_(written)
    assert found.type in (ConversationError, PromptError, MediaError)


# Pages -------------------------------------------------------------------------------------------

HOSTILE = """</script><script>alert(1)</script> "quoted" 'single' & <!-- <img src=x onerror=a()>
\u202egnp.exe\u200f\x1b[2J\x00 ]]> {title}"""


class Page(HTMLParser):
    """Tags and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile() -> Conversation:
    talk = Conversation(system=HOSTILE, model=HOSTILE)
    talk.rename(HOSTILE)
    call = {"function": {"name": HOSTILE, "arguments": {HOSTILE: HOSTILE}}}
    talk.append("user", HOSTILE)
    talk.append("assistant", HOSTILE, thought=HOSTILE, tool_calls=[call], model=HOSTILE)
    talk.append("tool", HOSTILE, name=HOSTILE)
    return talk


def test_a_page_of_hostile_text() -> None:
    page = to_html(hostile())
    found = Page(page)
    assert set(found.tags) == {
        *("html", "head", "meta", "title", "style", "body", "h1", "article", "h2", "div", "time"),
        *("details", "summary", "pre"),
    }
    assert not any(name.startswith("on") or name in ("src", "href") for name, _ in found.attributes)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u200e\u200f\u202a-\u202e\u2066-\u2069]", page)
    assert "</script><script>alert(1)</script>" in found.text  # as text
    assert "<U+202E>gnp.exe<U+200F>␛[2J␀" in found.text
    assert found.text.count("\"quoted\" 'single' & <!-- <img") >= 8
    assert "default-src 'none'" in page


def test_a_page_has_its_pictures_in_it(tmp_path: Path) -> None:
    tiff = tmp_path / "a.tiff"
    Image.new("RGB", (3, 2), "red").save(tiff)
    video = tmp_path / "a.mp4"
    video.write_bytes(b"frames")
    talk = Conversation()
    parts = [
        {"type": "image", "image": GIF},
        {"type": "image", "image": str(tiff)},
        {"type": "video", "video": str(video)},
    ]
    ask(talk, [*parts, {"type": "text", "text": "which?"}], "all")
    page = to_html(talk)
    sources = [value for name, value in Page(page).attributes if name == "src"]
    assert sources[0] == URI
    assert (sources[1] or "").startswith("data:image/png;base64,") and len(sources) == 2
    assert "A video: " in page
    (bare,) = import_(to_json(talk, media=False))
    assert to_html(bare).count("which is missing") == 3
    assert not Page(to_html(bare)).tags.count("img")


def test_what_a_page_says_of_an_answer() -> None:
    talk = Conversation(model="nano")
    stream = talk.ask(Talker(["HMon", "e"]), "hi")
    while not talk.line[1:]:
        if type(next(stream)).__name__ == "Committed":
            stream.close()
    page = Page(to_html(talk)).text
    assert "Assistant nano" in page and "The answer was stopped here." in page
    assert "Thought" in page and "HM" in page


# Markdown ----------------------------------------------------------------------------------------


def test_markdown() -> None:
    talk = Conversation(system="be brief", model="nano")
    talk.rename("A # title")
    talk.append("user", [{"type": "image", "image": GIF}, {"type": "text", "text": "what?"}])
    talk.append("assistant", "", thought="a\n\nb", tool_calls=[CALL], model="nano")
    talk.append("tool", "sun", tool_call_id="c", name="weather")
    talk.append("assistant", "It is:\n```python\nx", reason="cancelled", model="nano")
    talk.append("user", "`````\n```\ny")
    name = hashlib.sha256(GIF).hexdigest()
    assert (
        to_markdown(talk)
        == f"""# A # title

## System

be brief

## User

![image](media/{name}.gif)

what?

## Assistant nano

> a
>
> b

```
weather {{"in":"`x`"}}
```

## Tool weather

sun

## Assistant nano

It is:
```python
x
```

*The answer was stopped here.*

## User

`````
```
y
`````
"""
    )


def test_files(tmp_path: Path) -> None:
    talk = hostile()
    talk.append("user", "half a character: \ud800")
    for ending in (".json", ".md", ".html", ".HTML"):
        path = tmp_path / f"talk{ending}"
        export(talk, path)
        assert path.read_text(encoding="utf-8")
    (again,) = import_((tmp_path / "talk.json").read_bytes())
    assert to_json(again) == to_json(talk)
    with pytest.raises(StoreError, match=r"talk.pdf ends with '.pdf'; choose .json, .md, .html"):
        export(talk, tmp_path / "talk.pdf")
    with pytest.raises(StoreError, match="ends with 'nothing'"):
        export(talk, tmp_path / "talk")
    with pytest.raises(StoreError, match=r"cannot be written \(No such file or directory\)"):
        export(talk, tmp_path / "no" / "talk.md")
