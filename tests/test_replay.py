"""Recordings: what is drawn from one is what was drawn live, and nothing damaged is played."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import BYTE

from dg_mlx.canvas.edit import Span
from dg_mlx.cli.canvas.frame import VIEWS, Drawing, Frames
from dg_mlx.errors import StoreError
from dg_mlx.events import Committed, Done, Draft, Event, Prefilled, Trust
from dg_mlx.processor.reply import ControlTokens
from dg_mlx.replay import Recorder, Recording, files

END, THINK, THOUGHT, CALL, CALLED, TURN, QUOTE, FIRST = range(1, 9)
TEXTS = [
    "a",
    " word",
    "\n",
    "x\ny",
    "\t",
    "",
    "\x1b[2J",
    "\u202e",
    "漢",
    "👩",
    "\u200d",
    "\u0301",
    "\r",
]
CONTROL = ControlTokens(
    opens={THINK: "thought", CALL: "call", TURN: "header"},
    closes={THINK: THOUGHT, CALL: CALLED},
    ends=frozenset([END]),
    quote=QUOTE,
    special=frozenset(range(1, FIRST)),
    bytes={BYTE + value: value for value in range(256)},
    thought=(THINK, THOUGHT),
    turn_end=END,
)
FOX = [BYTE + value for value in "🦊".encode()]


class Speech:
    """A processor with all kinds of tokens."""

    control = CONTROL

    def piece(self, token: int) -> str:
        if token >= BYTE:
            return "\ufffd"
        return f"<{token}>" if token < FIRST else TEXTS[token - FIRST]


WORDS = range(FIRST, FIRST + len(TEXTS))
TOKENS = st.one_of(
    st.sampled_from(WORDS),
    st.integers(1, FIRST - 1),
    st.sampled_from([*FOX, BYTE + 10, BYTE + 0xFF]),
)


@dataclass(frozen=True)
class Stream:
    """The events of some answers."""

    events: list[Event]
    ends: tuple[int, ...]
    most: int


@st.composite
def drafts(draw: st.DrawFn, block: int) -> list[Draft]:
    length = draw(st.integers(1, 12))

    def row(values: st.SearchStrategy[Any], kind: Any) -> Any:
        return np.array(draw(st.lists(values, min_size=length, max_size=length)), kind)

    made: list[Draft] = []
    frozen = row(st.booleans(), np.bool_)
    for step in range(1, draw(st.integers(1, 5)) + 1):
        again = made and draw(st.booleans())
        trust = Trust(
            probability=row(st.floats(0, 1, width=32), np.float32),
            entropy=np.zeros(length, np.float32),
            settled=row(st.integers(0, 3), np.int32),
            changes=np.zeros(length, np.int32),
        )
        made.append(
            Draft(
                block=block,
                step=step,
                max_steps=9,
                canvas=made[-1].canvas if again else row(TOKENS, np.int32),
                guess=made[-1].guess if again else row(TOKENS, np.int32),
                accepted=row(st.booleans(), np.bool_),
                frozen=frozen if draw(st.booleans()) else row(st.booleans(), np.bool_),
                entropy=row(st.floats(0, 12, width=32), np.float32),
                trust=trust,
            )
        )
    return made


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    """One answer or two. What is committed is the last guess, up to its end, or was pinned."""
    ends = draw(st.sampled_from([(END,), (END, FIRST), (END, THOUGHT), (CALL,)]))
    most = draw(st.integers(1, 30))
    events: list[Event] = []
    for _ in range(draw(st.integers(1, 2))):
        events.append(Prefilled(tokens=7, cached=1, seconds=0.25))
        left = most
        for block in range(draw(st.integers(1, 3))):
            ids = []
            if block == 0 and draw(st.booleans()):
                pinned = draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4))
                ids = [token for token in pinned if token not in ends][:left]
            else:
                made = draw(drafts(block))
                events += made
                ids = made[-1].guess.tolist()[:left]
                end = next((i for i, token in enumerate(ids) if token in ends), len(ids))
                ids = ids[: end + 1]
            left -= len(ids)
            trust = fakes.trust(len(ids))
            events.append(Committed(block=block, ids=ids, text="t", thought="", trust=trust))
        if draw(st.booleans()):
            events.append(Done(reason="end", stats=fakes.stats(most - left)))
    return Stream(events, ends, most)


def recorded(stream: Stream) -> Recorder:
    recorder = Recorder(
        Speech(), ends=stream.ends, most=stream.most, clock=iter(range(10**6)).__next__
    )
    recorder.begin(model="m", prompt="p", settings={"max_new_tokens": 9}, seed=3, length=12)
    for event in stream.events:
        recorder.take(event)
    return recorder


def read_again(recorder: Recorder, *, gz: bool = True) -> Recording:
    return Recording.of(Recording(recorder.frames).data(gz=gz))


def live_frames(stream: Stream) -> Frames:
    return Frames(Speech(), ends=stream.ends, most=stream.most)


def drawn(events: Sequence[Event], begin: Any, skipped: set[int]) -> Iterator[Any]:
    """What a terminal draws, and the numbers below it; not of every draft."""
    drawing = begin()
    for number, event in enumerate(events):
        match event:
            case Prefilled():
                drawing = begin()
            case Draft():
                drawing.note(event)
                yield drawing.progress()
            case Committed():
                drawing.commit(event)
        if number not in skipped:
            yield [drawing.cells(view) for view in VIEWS]


@settings(deadline=None)
@given(streams(), st.booleans(), st.sets(st.integers(0, 20)))
def test_what_is_drawn_is_what_was_drawn_live(stream: Stream, gz: bool, skipped: set[int]) -> None:
    recording = read_again(recorded(stream), gz=gz)
    reader, again = recording.reader(), [event for _, event in recording.events()]
    live = drawn(
        stream.events, lambda: Frames(Speech(), ends=stream.ends, most=stream.most), skipped
    )
    assert [*drawn(again, lambda: Drawing(reader), skipped)] == [*live]


@settings(deadline=None)
@given(streams())
def test_differences_add_up_to_the_drafts(stream: Stream) -> None:
    """As docs/recordings.md says, with nothing of ours."""
    frames = [f for f in recorded(stream).frames if f["kind"] in ("draft", "commit", "read")]
    canvas: list[int] = []
    guess: list[int] = []
    told = [event for event in stream.events if not isinstance(event, Done)]
    first, known = True, set[str]()
    for frame, event in zip(frames, told, strict=True):
        if not isinstance(event, Draft):
            first = True
            continue
        assert frame["key"] or not first
        assert ("i" in frame) != frame["key"]
        if frame["key"]:
            canvas, guess = frame["c"], frame["g"]
        else:
            canvas, guess = [*canvas], [*guess]
            for at, c, g in zip(frame["i"], frame["c"], frame["g"], strict=True):
                canvas[at], guess[at] = c, g
        assert canvas == event.canvas.tolist() and guess == event.guess.tolist()
        assert known.isdisjoint(frame["new"])
        known |= frame["new"].keys()
        assert {str(token) for token in canvas + guess} <= known
        first = False


@settings(deadline=None)
@given(streams())
def test_events_are_as_they_were(stream: Stream) -> None:
    recording = read_again(recorded(stream))
    drafted = False
    for (at, again), event in zip(recording.events(), stream.events, strict=True):
        assert at >= 1
        match event:
            case Draft():
                drafted = True
                for name in ("canvas", "guess", "accepted"):
                    assert (getattr(again, name) == getattr(event, name)).all()
                assert (again.frozen == event.frozen).all()
                fifths = np.minimum(event.trust.probability * 5, 4).astype(int)
                near = np.abs(again.trust.probability - event.trust.probability)
                assert (near <= 0.1001 + 0.05 * (fifths == 2)).all()
            case Committed():
                assert again.text == event.text and len(again.trust.settled) == len(event.ids)
                assert again.ids == (event.ids if drafted else [-1] * len(event.ids))
                drafted = False
            case _:
                assert again == event


@settings(deadline=None)
@given(streams())
def test_drafts_of_a_recording_are_drawn_alike_by_themselves(stream: Stream) -> None:
    """Their states follow from their numbers, as those of a model's drafts do."""
    recording = read_again(recorded(stream))
    again = [event for _, event in recording.events()]
    if any(isinstance(event, Committed) and -1 in event.ids for event in again):
        return
    alike = drawn(again, lambda: live_frames(stream), set())
    assert [*alike] == [*drawn(stream.events, lambda: live_frames(stream), set())]


# What is recorded --------------------------------------------------------------------------------


def draft(step: int, guess: list[int], **given: Any) -> Draft:
    count = len(guess)
    trust = fakes.trust(count)
    trust.probability[:] = given.pop("probability", 0.1)
    trust.settled[:] = given.pop("settled", 0)
    plain = {
        "canvas": np.array(guess, np.int32),
        "accepted": np.zeros(count, np.bool_),
        "frozen": np.zeros(count, np.bool_),
        "entropy": np.ones(count, np.float32),
    }
    given = {name: np.array(value) for name, value in given.items()}
    ids = np.array(guess, np.int32)
    return Draft(block=0, step=step, max_steps=48, guess=ids, trust=trust, **{**plain, **given})


def recorder(**given: Any) -> Recorder:
    made = Recorder(Speech(), **{"ends": (END,), "most": 100, **given})
    made.begin(model="nano", prompt="say", settings={"t_min": 0.4}, seed=7, length=4)
    return made


def test_a_draft_as_documented() -> None:
    made = recorder()
    made.take(Prefilled(tokens=3, cached=0, seconds=0.5))
    first = made.take(
        draft(
            1,
            [FIRST, THINK, BYTE + 65, END],
            probability=[0.19, 0.5, 0.99, 1],
            entropy=[1, 0, 2, 9],
        )
    )
    assert first | {"at": 0} == {
        "n": 2,
        "at": 0,
        "kind": "draft",
        "block": 0,
        "step": 1,
        "max": 48,
        "key": True,
        "c": [FIRST, THINK, BYTE + 65, END],
        "g": [FIRST, THINK, BYTE + 65, END],
        "v": [0, 1 + 16 * 2, 1 + 16 * 4, 1 + 16 * 4],
        "new": {str(END): "<1>", str(THINK): "<2>", str(FIRST): "a", str(BYTE + 65): 65},
        "count": 4,
        "parts": [[1, 2, "control"], [2, 3, "thought"], [3, 4, "control"]],
        "settled": 0,
        "entropy": 3.0,
        "tokens": 0,
        "steps": 1,
    }
    yes, no = True, False
    second = made.take(
        draft(
            2,
            [FIRST, THINK, BYTE + 65, FIRST + 8],
            probability=[0.19, 0.5, 0.99, 1],
            accepted=[no, no, no, yes],
            settled=1,
        )
    )
    expected = {"key": False, "i": [3], "g": [FIRST + 8], "v": [2 + 8 + 16 * 4]}
    assert {name: second[name] for name in expected} == expected
    assert (second["new"], second["settled"]) == ({str(FIRST + 8): "漢"}, 1)
    assert second["parts"] == [[1, 2, "control"], [2, 4, "thought"]]


def test_answers_of_a_run_follow_one_another() -> None:
    made = recorder()
    for _ in range(2):
        made.take(Prefilled(tokens=3, cached=0, seconds=0.5))
        frame = made.take(draft(1, [FIRST, END], accepted=[True, True], settled=1))
        made.take(Committed(block=0, ids=[FIRST, END], text="a", trust=fakes.trust(2)))
        made.take(Done(reason="end", stats=fakes.stats(2)))
        assert (frame["steps"], frame["tokens"], frame["key"]) == (1, 2, True)
    assert frame["new"] == {}  # said before
    assert [frame["n"] for frame in made.frames] == [*range(9)]
    assert read_again(made).text == "a\na"


def test_times_are_since_the_beginning_to_the_millisecond() -> None:
    times = iter([100.0, 100.12345])
    made = recorder(clock=lambda: next(times))
    made.tell("note", text="so")
    assert [frame["at"] for frame in made.frames] == [0, 0.123]


def test_texts_are_harmless() -> None:
    made = recorder()
    made.take(draft(1, [FIRST + 6, FIRST + 7]))
    made.take(Committed(block=0, ids=[9], text="\x1b[2J", thought="\u202e", trust=fakes.trust(1)))
    call = {"function": {"name": "f\x07", "arguments": {"k\x00": ["\x9b"]}}}
    made.take(Done(reason="tool_call", stats=fakes.stats(1), tool_calls=[call]))
    made.tell("error", text="it\nfailed \x1b")
    told = json.dumps(made.frames, ensure_ascii=False)
    assert not any(char in told for char in "\x1b\u202e\x9b") and "\\u00" not in told
    assert made.frames[-1]["text"] == "it failed ␛"
    assert made.frames[-2]["tool_calls"][0]["function"]["arguments"] == {"k␀": ["<U+009B>"]}


def test_spans_of_an_edit_stand_where_its_harmless_text_has_them() -> None:
    made = recorder()
    text = "\u202ea new text\u202e b new"
    spans = (Span(3, 6), Span(15, 18))
    frame = made.tell("edited", text=text, spans=spans, fills=("new", "new"))
    assert [frame["text"][a:b] for a, b in frame["spans"]] == ["new", "new"]
    assert frame["fills"] == ["new", "new"]
    assert made.tell("edited", text="ab", spans=[[0, 1]], fills=["a"])["spans"] == [[0, 1]]
    assert read_again(made).text == "ab"


def test_what_somebody_pinned_last_is_committed() -> None:
    made = recorder()
    made.take(draft(1, [FIRST, FIRST, FIRST]))
    made.tell("touch", block=0, what="pin", positions=(0, 1), ids=(FIRST + 1, FIRST + 2))
    made.tell("touch", block=0, what="release", positions=(1,))
    made.take(Committed(block=0, ids=[FIRST + 1, FIRST], text="", trust=fakes.trust(2)))
    (_, committed) = [*read_again(made).events()][-1]
    assert isinstance(committed, Committed) and committed.ids == [FIRST + 1, FIRST]


def test_a_pinned_token_that_was_not_there_before_has_its_text() -> None:
    made = recorder()
    made.take(draft(1, [FIRST, FIRST]))
    frame = made.tell("touch", block=0, what="pin", positions=(0,), ids=(FIRST + 3,))
    assert list(frame["new"]) == [str(FIRST + 3)]
    made.take(draft(2, [FIRST + 3, FIRST]))
    assert made.frames[-1]["new"] == {}
    assert read_again(made).document == {**read_again(made).document, "frames": made.frames}


def test_time_that_a_run_was_held_is_short() -> None:
    times = iter([0, 1, 2, 600, 1200, 1201.0])
    made = recorder(clock=lambda: next(times))
    made.take(draft(1, [FIRST]))
    made.tell("pause")
    made.take(draft(2, [FIRST]))
    made.tell("resume")
    made.take(draft(3, [FIRST]))
    assert [at for at, _ in read_again(made).events()] == [1, 3, 5]


# Files -------------------------------------------------------------------------------------------


def answer() -> Recorder:
    made = recorder()
    made.take(Prefilled(tokens=3, cached=0, seconds=0.5))
    made.take(draft(1, [FIRST, FIRST + 1]))
    made.take(draft(2, [FIRST, FIRST + 1], canvas=[FIRST, FIRST]))
    made.take(Committed(block=0, ids=[FIRST], text="a", trust=fakes.trust(1)))
    made.take(Done(reason="length", stats=fakes.stats(1)))
    made.tell("end", conversation=None, message=None)
    return made


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_a_file_is_read_as_it_was_written(name: str, tmp_path: Path) -> None:
    frames = answer().frames
    path = tmp_path / name
    Recording(frames).write(path)
    assert Recording.read(path).frames == frames
    assert path.read_bytes().startswith(b"\x1f\x8b") == name.endswith("gz")
    assert [*tmp_path.iterdir()] == [path]


def test_a_file_that_cannot_be_written_or_read(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no/a\.json cannot be written \(No such file"):
        Recording(answer().frames).write(tmp_path / "no" / "a.json")
    with pytest.raises(StoreError, match=r"cannot be read \(Is a directory\); check the path"):
        Recording.read(tmp_path)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe\xfd", "neither JSON nor gzip"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"format": NaN}', "NaN is not a number"),
        (b"\x1f\x8b\x08 no gzip", "its gzip is damaged"),
        (gzip.compress(b'{"a": 1}' * 99)[:-9], "its gzip is damaged"),
        (b"{}", "this is not a recording of dg-mlx; choose another file"),
        (b'{"format": "dg-mlx conversation"}', "not a recording of dg-mlx"),
        (
            b'{"format": "dg-mlx recording", "version": 2}',
            "this dg-mlx reads 1; update",
        ),
        (b'{"format": "dg-mlx recording", "version": 1, "frames": []}', "it has no frames"),
    ],
)
def test_what_is_no_recording(data: bytes, said: str) -> None:
    with pytest.raises(StoreError, match=said):
        Recording.of(data)


@pytest.mark.parametrize(
    ("number", "change", "said"),
    [
        (0, {"n": 1}, "frame 0 has the number 1"),
        (0, {"settings": {}}, "frame 0 has a wrong 'settings'"),
        (0, {"kind": "note", "text": ""}, "frame 0 is a 'note' in the wrong place"),
        (1, {"at": -1}, "frame 1 is at -1"),
        (1, {"tokens": 1.5}, "frame 1 has a wrong 'tokens'"),
        (1, {"kind": "begun"}, "frame 1 is of the kind 'begun', which is none"),
        (2, {"c": [FIRST]}, "frame 2 has lists of different lengths"),
        (2, {"c": [FIRST, 77]}, "frame 2 has tokens without a text"),
        (2, {"g": [FIRST, 2**40]}, "frame 2 has a wrong 'g'"),
        (2, {"v": [0, 5]}, "frame 2 has a wrong 'v'"),
        (2, {"i": [0, 1]}, "frame 2 is the first of a block and does not say all of it"),
        (2, {"new": {"x": "a"}}, "frame 2 has a wrong 'new'"),
        (2, {"new": {"9": 256}}, "frame 2 has a wrong 'new'"),
        (2, {"count": 3}, "frame 2 counts more than there is"),
        (2, {"parts": [[0, 3, "thought"]]}, "frame 2 has parts behind its end"),
        (2, {"parts": [[1, 2, "control"], [0, 1, "control"]]}, "frame 2 has wrong parts"),
        (2, {"parts": [[0, 1, "text"]]}, "frame 2 has wrong parts"),
        (3, {"i": [2]}, "frame 3 has wrong positions"),
        (3, {"i": 0}, "frame 3 has wrong positions"),
        (3, {"entropy": "1"}, "frame 3 has a wrong 'entropy'"),
        (5, {"stats": {}}, "frame 5 has a wrong 'stats'"),
        (5, {"kind": "end", "conversation": None, "message": 1}, "frame 5 has a wrong 'message'"),
        (5, {"kind": "end", "conversation": None, "message": None}, "frame 6 is a 'end' in the"),
        (6, {"kind": "edited", "text": "a"}, "frame 6 has no 'spans'"),
        (6, {"kind": "touch", "block": 0, "what": "pin", "positions": [1]}, "wrong 'ids'"),
    ],
)
def test_what_is_damaged(number: int, change: dict[str, Any], said: str) -> None:
    document = json.loads(Recording(answer().frames).data(gz=False))
    document["frames"][number] |= change
    with pytest.raises(StoreError, match=f"this is a damaged recording.*{said}.*; get it again"):
        Recording.of(json.dumps(document).encode())


@settings(deadline=None)
@given(st.data())
def test_no_damage_is_played_or_crashes(data: st.DataObject) -> None:
    """One value is another one: it is refused, or all of it can still be drawn."""
    document = json.loads(Recording(answer().frames).data(gz=False))
    frame = data.draw(st.sampled_from(document["frames"]))
    name = data.draw(st.sampled_from(sorted(frame)))
    other = st.one_of(st.none(), st.integers(-2, 300), st.text(max_size=2), st.floats(-1, 9))
    lists = st.lists(st.one_of(other, st.lists(other, max_size=3)), max_size=4)
    frame[name] = data.draw(other | lists | st.dictionaries(st.text(max_size=2), other, max_size=2))
    try:
        recording = Recording.of(json.dumps(document).encode())
    except StoreError:
        return
    reader, events = recording.reader(), [event for _, event in recording.events()]
    [*drawn(events, lambda: Drawing(reader), set())]
    assert isinstance(recording.text, str)


def test_a_small_file_that_unpacks_to_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LIMIT_MB", 1)
    with pytest.raises(StoreError, match="it is larger than 1 MB"):
        Recording.of(gzip.compress(b" " * 30_000_000))
    with pytest.raises(StoreError, match="it is larger than 1 MB"):
        Recording.of(b" " * 1_000_001)
