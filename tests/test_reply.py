"""Ids to text, thought and tool calls: nothing leaks, nothing depends on how ids are split."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st

from dg_mlx.processor.calls import parse_call
from dg_mlx.processor.reply import ControlTokens, ReplyDelta, ReplyParser

TOKENIZER = small.tokenizer()
CONTROL = ControlTokens.of(TOKENIZER)
NAMES = [*small.SPECIAL, small.QUOTE]


def ids_of(text: str, tokenizer: Any = TOKENIZER) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def read(ids: Sequence[int], cuts: Sequence[int] = (), **options: Any) -> ReplyParser:
    """Feed the ids in pieces; the deltas must add up to what the parser says at the end."""
    parser = ReplyParser(TOKENIZER, CONTROL, **options)
    text = thought = ""
    edges = [0, *sorted(cuts), len(ids)]
    deltas = [parser.feed(ids[a:b]) for a, b in pairwise(edges)]
    for delta in [*deltas, parser.finish()]:
        text, thought = text + delta.text, thought + delta.thought
    assert (text, thought) == (parser.text, parser.thought)
    assert parser.finish() == ReplyDelta()
    return parser


def answer(text: str, **options: Any) -> tuple[str, str]:
    parser = read(ids_of(text), **options)
    return parser.text, parser.thought


def calls(text: str) -> list[tuple[str, Any]]:
    parser = read(ids_of(text))
    assert parser.text == ""
    return [(c["function"]["name"], c["function"]["arguments"]) for c in parser.tool_calls]


def test_plain_text_is_kept_as_it_is():
    text = "  the <b>x</b>\n\n<|turn is not a token, naïve 東京 🎉 "
    assert answer(text + "<turn|>") == (text, "")


def test_thought_and_text():
    thought = "<|channel>thought\nfirst\n\nthen\n<channel|>"
    assert answer(thought + "Hi there") == ("Hi there", "first\n\nthen")
    assert answer("<|channel>thought\n<channel|>Hi") == ("Hi", "")
    assert answer(thought + "Hi " + thought + "there") == (
        "Hi there",
        "first\n\nthen\nfirst\n\nthen",
    )


@pytest.mark.parametrize(
    ("text", "thought"),
    [
        ("<|channel>final\nyes<channel|>", "final\nyes"),
        ("<|channel>no name here<channel|>", "no name here"),
        ("<|channel>\nbody<channel|>", "\nbody"),
        ("<|channel><channel|>", ""),
        ("<|channel>thou<channel|>", ""),
        ("<|channel>thoughtful<channel|>", "thoughtful"),
        ("<|channel>thought\nThough\n\n<channel|>", "Though\n"),
    ],
)
def test_channels_that_are_not_quite_thoughts(text, thought):
    assert answer(text + "ok") == ("ok", thought)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Hi<|channel>thought\nwhat if", ("Hi", "what if")),
        ("Hi<|channel>tho", ("Hi", "")),
        ("Hi<|channel>", ("Hi", "")),
        ("Hi<|tool_call>call:get{a:1", ("Hi", "")),
        ("Hi<|tool_call>ca", ("Hi", "")),
        ("Hi<|tool_call>", ("Hi", "")),
        ("Hi<channel|><tool_call|>!", ("Hi!", "")),
        ("Hi<turn|>\n<|turn>model\nagain", ("Hi\nagain", "")),
        ("Hi<|turn>mod", ("Hi", "")),
        ('Hi<|"|><pad><|image><|image|><eos>', ("Hi", "")),
        ("Hi<|tool_response>response:get{value:1}<tool_response|>!", ("Hi!", "")),
        ("<|channel>thought\na<|tool_call>call:get{}<tool_call|>b", ("b", "a")),
        ("<|channel>thought\na<|channel>thought\nb<channel|>c", ("c", "a\nb")),
        ("<|channel>thought\na\n<turn|>b", ("b", "a")),
    ],
)
def test_cut_or_stray_control_tokens_do_not_leak(text, wanted):
    assert answer(text) == wanted


def test_prompt_that_ends_inside_a_thought():
    assert answer("so\n<channel|>Hi", thinking_open=True) == ("Hi", "so")
    assert answer("thought\nso\n<channel|>Hi", thinking_open=True) == ("Hi", "so")
    assert answer("so", thinking_open=True) == ("", "so")


def test_tool_calls_in_openai_form():
    parser = read(ids_of('<|tool_call>call:get{city:<|"|>Köln<|"|>}<tool_call|>' * 2))
    function = {"name": "get", "arguments": {"city": "Köln"}}
    assert parser.tool_calls == [
        {"type": "function", "id": "call_0", "function": function},
        {"type": "function", "id": "call_1", "function": function},
    ]


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ("{}", {}),
        ("{n:1,x:-2.5e-05,yes:true,no:false,none:null}",
         {"n": 1, "x": -2.5e-05, "yes": True, "no": False, "none": None}),
        ('{list:[1,<|"|>a<|"|>,[]],obj:{<|"|>k y<|"|>:{z:1}}}',
         {"list": [1, "a", []], "obj": {"k y": {"z": 1}}}),
        ('{s:<|"|>{"a": [1, 2]}, call:x{y:1}\n<b> \\"<|"|>}',
         {"s": '{"a": [1, 2]}, call:x{y:1}\n<b> \\"'}),
        ('{s:<|"|><|"|>, t : <|"|> sp <|"|> }', {"s": "", "t": " sp "}),
        ('{"a":"x\\ny", b:New York}', {"a": "x\ny", "b": "New York"}),
        ("{a:NaN,b:1e999,c:007}", {"a": "NaN", "b": "1e999", "c": "007"}),
    ],
)  # fmt: skip
def test_arguments(body, arguments):
    assert calls(f"<|tool_call>call:a.b-c_1{body}<tool_call|>") == [("a.b-c_1", arguments)]
    json.dumps(arguments, allow_nan=False)


def test_a_whole_call_needs_no_closing_token():
    text = "<|tool_call>call:a{}<|tool_call>call:b{}<turn|>"
    assert calls(text) == [("a", {}), ("b", {})]


@pytest.mark.parametrize(
    "text",
    ["call:", "call:get", "call:get{", "call:get{a}", "call:get{a:}", "call:get{a:1", "call:get{}}",
     "call:{a:1}", "call:get{a:1 b:2}", "call:get{a:[1}", 'call:get{a:<|"|>x}', "call:get{,}",
     'call:get{a:<|"|>x<|"|>y}', "call:get{a:" + "[" * 100 + "]" * 100 + "}", 'call:get{"a}'],
)  # fmt: skip
def test_calls_that_cannot_be_read_are_kept_apart(text):
    parser = read(ids_of(f"Hi<|tool_call>{text}<tool_call|>!"))
    assert (parser.text, parser.tool_calls) == ("Hi!", [])
    assert parser.broken_calls == [text.replace('<|"|>', "")]


def test_what_is_no_call_at_all_counts_as_text():
    parser = read(ids_of('<|tool_call>I <|"|>can<|"|>not.<tool_call|>'))
    assert (parser.text, parser.tool_calls, parser.broken_calls) == ("I cannot.", [], [])


def test_characters_are_held_until_they_are_whole():
    ids = ids_of("aé🎉b")
    parser = ReplyParser(TOKENIZER, CONTROL)
    deltas = [parser.feed([token]).text for token in ids]
    assert "".join(deltas) == "aé🎉b"
    assert deltas[0] == "a" and deltas[-1] == "é🎉b"
    assert read(ids[:2]).text == "a\ufffd"
    assert read(ids[:-1]).text == "aé🎉"


def test_tokenizer_without_control_tokens():
    tok = small.tokenizer()
    tok = type(tok)(tokenizer_object=without_special(tok), eos_token="<eos>")
    parser = ReplyParser(tok)
    parser.feed(tok.encode("a<|channel>b", add_special_tokens=False))
    parser.finish()
    assert parser.text == "a<|channel>b"


def without_special(tok: Any) -> Any:
    from tokenizers import Tokenizer

    data = json.loads(tok.backend_tokenizer.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] == "<eos>"]
    for name in NAMES:
        if name not in ("<eos>", "<unk>"):
            data["model"]["vocab"][f"unused {name}"] = data["model"]["vocab"].pop(name)
    return Tokenizer.from_str(json.dumps(data))


def test_no_json_constants_from_numbers():
    assert parse_call(["call:f{a:" + "9" * 5000 + "}"]) == ("f", {"a": "9" * 5000})


streams = st.lists(st.integers(0, len(TOKENIZER) - 1) | st.sampled_from(ids_of("".join(NAMES))))


@settings(max_examples=150, deadline=None)
@given(ids=streams, data=st.data(), open_=st.booleans())
def test_any_split_gives_the_same_answer(ids, data, open_):
    cuts = data.draw(st.lists(st.integers(0, len(ids)), max_size=6))
    whole, split = read(ids, thinking_open=open_), read(ids, cuts, thinking_open=open_)
    for name in ("text", "thought", "tool_calls", "broken_calls"):
        assert getattr(whole, name) == getattr(split, name)


@settings(max_examples=150, deadline=None)
@given(
    ids=st.lists(st.sampled_from([i for i in range(len(TOKENIZER)) if i not in CONTROL.special]))
)
def test_text_equals_the_tokenizers_decode(ids):
    assert read(ids, range(len(ids))).text == TOKENIZER.decode(ids)


@settings(max_examples=50, deadline=None)
@given(
    arguments=st.dictionaries(
        st.from_regex("[a-z_]+", fullmatch=True),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False,
                                                                  allow_infinity=False)
            | st.text(st.characters(codec="utf-8", exclude_characters="▁\ufffd"), max_size=8),
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=5,
        ),
        max_size=3,
    )
)  # fmt: skip
def test_arguments_written_as_the_template_writes_them_come_back(arguments):
    def write(value: Any) -> str:
        if isinstance(value, str):
            return f'<|"|>{value}<|"|>'
        if isinstance(value, list):
            return "[" + ",".join(map(write, value)) + "]"
        return repr(value) if type(value) in (int, float) else json.dumps(value)

    body = ",".join(f"{key}:{write(value)}" for key, value in arguments.items())
    for name in NAMES:
        if name in json.dumps(arguments):
            return
    assert calls(f"<|tool_call>call:f{{{body}}}<tool_call|>") == [("f", arguments)]


@pytest.mark.reference
def test_the_real_tokenizer(reference):
    from transformers import AutoTokenizer

    tok = AutoTokenizer.from_pretrained(reference / "hub", local_files_only=True)
    control = ControlTokens.of(tok)
    assert control.quote == 52 and control.ends == {1, 106}
    assert control.opens == {100: "thought", 48: "call", 50: "hidden", 46: "hidden", 105: "header"}
    visible = " Ja,  naïve 東京 🏳️‍🌈\n\t\u17b5▁x <table> "
    text = (
        "<|channel>thought\nhm…\n<channel|>" + visible
        + '<|tool_call>call:get{city:<|"|>Łódź, "x"<|"|>,n:3}<tool_call|><|tool_response>'
    )  # fmt: skip
    ids = tok.encode(text, add_special_tokens=False)
    parser = ReplyParser(tok, control)
    deltas = [parser.feed([token]) for token in ids] + [parser.finish()]
    assert "".join(d.text for d in deltas) == parser.text
    assert parser.text == tok.decode(tok.encode(visible, add_special_tokens=False))
    assert parser.thought == "hm…"
    arguments = {"city": 'Łódź, "x"', "n": 3}
    assert parser.tool_calls[0]["function"] == {"name": "get", "arguments": arguments}
