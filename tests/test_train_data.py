"""Chats to examples, through the bundled checkpoint's own template and the published one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st

import dg_mlx
from dg_mlx.config import ModelConfig
from dg_mlx.errors import DGError, SettingsError
from dg_mlx.processor import Processor
from dg_mlx.settings import GenerationSettings
from dg_mlx.train.batch import Example
from dg_mlx.train.data import DataError, DataSettings, Examples
from dg_mlx.train.settings import TrainSettings
from dg_mlx.train.source import Chats, batches_of_epoch, epoch

NANO = Path(dg_mlx.__file__).parent / "nano"
CANVAS = 112
END, EOS = 6, 1
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


@pytest.fixture(scope="module")
def nano() -> tuple[Processor, ModelConfig, GenerationSettings]:
    config = ModelConfig.load(NANO)
    return Processor(NANO, config), config, GenerationSettings.load(NANO)


@pytest.fixture
def read(nano, tmp_path: Path):
    """Lines of a file to examples."""

    def make(*lines: Any, **options: Any) -> Examples:
        path = tmp_path / "chats.jsonl"
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_text("\n".join(texts), encoding="utf-8")
        return Examples(path, *nano, DataSettings(**options))

    return make


def chat(*turns: str, **more: Any) -> dict[str, Any]:
    """A chat of user and assistant in turn."""
    roles = ("user", "assistant") * len(turns)
    return {"messages": [{"role": r, "content": t} for r, t in zip(roles, turns, strict=False)]} | (
        more
    )


def text(examples: Examples, ids: Any) -> str:
    return str(examples._processor.tokenizer.decode(list(ids)))


def test_prompt_and_answer_are_the_templates(read) -> None:
    examples = read(chat("hi", "hello", "more", "yes"), "", {"messages": CHAT})
    assert len(examples) == 2 and examples.blocks == [1, 1]
    first = examples[0]
    prompt = "<bos><|turn>user\nhi<turn|>\n<|turn>model\nhello<turn|>\n<|turn>user\nmore<turn|>\n"
    assert text(examples, first.ids) == prompt + "<|turn>model\n"
    assert text(examples, first.answer[:4]) == "yes<turn|>"
    assert list(first.answer[4:]) == [EOS] * (CANVAS - 4)
    assert examples.lengths[0] == len(first.ids) + CANVAS
    assert [e.media for e in examples[0:2]] == [None, None]


def test_the_prompt_is_what_a_generation_reads(read, nano) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *CHAT]
    example = read({"messages": messages})[0]
    assert list(example.ids) == nano[0].encode(messages[:-1]).ids


def test_the_fill_can_be_chosen(read) -> None:
    answer = read({"messages": CHAT}, fill="<turn|>")[0].answer
    assert list(answer[5:]) == [END] * (CANVAS - 5)
    with pytest.raises(SettingsError, match="no token <none>; name the one"):
        read({"messages": CHAT}, fill="<none>")


@pytest.mark.parametrize(("letters", "blocks"), [(111, 1), (112, 2), (223, 2), (224, 3)])
def test_answers_take_whole_canvases(read, letters: int, blocks: int) -> None:
    """One more token than letters: the end."""
    example = read(chat("hi", "a" * letters))[0]
    assert len(example.answer) == blocks * CANVAS
    assert example.answer[letters] == END and example.answer.count(END) == 1


def test_a_tool_call_is_an_answer(read) -> None:
    """It ends where a generation hands over to the tool."""
    calls = {"role": "assistant", "tool_calls": [small.call({"city": "Rome"})]}
    messages = [{"role": "user", "content": "weather?"}, calls]
    examples = read({"messages": messages, "tools": small.TOOLS})
    answer = text(examples, [i for i in examples[0].answer if i != EOS])
    assert answer == ('<|tool_call>call:weather{city:<|"|>Rome<|"|>}<tool_call|><|tool_response>')
    assert "declaration:weather" in text(examples, examples[0].ids)
    after = [*messages, {"role": "tool", "content": "sunny"}, CHAT[1]]
    examples = read({"messages": after, "tools": small.TOOLS})
    assert text(examples, examples[0].answer[:6]) == "hello<turn|>"
    assert "sunny" in text(examples, examples[0].ids)


def test_pictures_lie_beside_the_file(tmp_path: Path) -> None:
    folder = small.save(tmp_path / "checkpoint")
    tokenizer = small.tokenizer()
    config = small.config(tokenizer)
    generation = GenerationSettings.load(NANO).replace(
        eos_token_id=(tokenizer.convert_tokens_to_ids("<turn|>"),)
    )
    small.PICTURE.save(tmp_path / "red.png")
    content = [{"type": "image", "image": "red.png"}, small.text("what is this?")]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "red"}]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": messages}))
    processor = Processor(folder, config)
    processor.chat_template = (NANO / "chat_template.jinja").read_text()
    examples = Examples(tmp_path / "chats.jsonl", processor, config, generation, DataSettings())
    for _ in range(2):  # pixels are not kept, but read again
        example = examples[0]
        assert example.media is not None
        (image,) = example.media.images
        assert example.ids[image.start] == config.image_token_id
    assert examples._kept == [None]
    (tmp_path / "red.png").unlink()
    with pytest.raises(DataError, match=r"chats.jsonl:1: .*red.png"):
        Examples(tmp_path / "chats.jsonl", processor, config, generation, DataSettings())


WRONG = {
    "no JSON": ("{", "this is no JSON"),
    "a list": ([1], "there are no messages"),
    "no messages": ({"prompt": "hi"}, "there are no messages"),
    "another key": (chat("hi", "ho", weight=2), "'weight' has no effect; leave it out"),
    "one message": (chat("hi"), "and the assistant's answer"),
    "no answer": (chat("hi", "ho", "more"), "the last message is by 'user'; end with"),
    "an empty answer": (chat("hi", ""), None),
    "an empty question": (chat("", "ho"), "message 0 (user) is empty"),
    "an unknown role": (
        {"messages": [{"role": "bot", "content": "x"}, CHAT[1]]}, "has role 'bot'; choose one of",
    ),
    "a picture": (
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "x.png"}]}, CHAT[1]]},
        "this checkpoint reads text only",
    ),
    "a long prompt": (chat("a" * 300, "ho"), "tokens; max_prompt is 100. Shorten it"),
    "a long answer": (chat("hi", "a" * 224), "225 tokens, 3 canvases of 112; max_canvases is 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(WRONG))
def test_wrong_lines(read, case: str) -> None:
    line, words = WRONG[case]
    if words is None:  # the end alone is an answer that a model may give
        assert read(chat("hi", ""))[0].answer[0] == END
        return
    with pytest.raises(DataError) as error:
        read({"messages": CHAT}, "", line, max_prompt=100, max_canvases=2)
    message = str(error.value)
    assert "chats.jsonl:3: " in message and words in message and "\n" not in message
    assert isinstance(error.value, DGError)


def test_longer_than_the_context(read, nano) -> None:
    limit = nano[1].text.max_position_embeddings
    with pytest.raises(DataError, match=f"this checkpoint's context is {limit}"):
        read(chat("a" * limit, "ho"), max_prompt=limit + 100)


def test_files_that_cannot_be_read(nano, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; name a file"):
        Examples(tmp_path / "none", *nano, DataSettings())
    (tmp_path / "empty").write_text("\n \n")
    with pytest.raises(DataError, match="is empty; write a chat per line"):
        Examples(tmp_path / "empty", *nano, DataSettings())
    (tmp_path / "latin").write_bytes(b"\xff\xfe{}")
    with pytest.raises(DataError, match="save it as UTF-8"):
        Examples(tmp_path / "latin", *nano, DataSettings())


@pytest.mark.parametrize("name", ["max_prompt", "max_canvases"])
def test_settings_out_of_range(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} is 0; it must be a whole number"):
        DataSettings(**{name: 0})


lengths_of = st.lists(st.integers(1, 500), min_size=1, max_size=300)


@settings(max_examples=50, deadline=None)
@given(lengths_of, st.integers(1, 9), st.integers(0, 9))
def test_an_epoch_has_every_example_once(lengths: list[int], size: int, seed: int) -> None:
    batches = epoch(lengths, size=size, seed=seed, number=0)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert [len(b) for b in batches].count(size) >= len(batches) - 1 - len(lengths) // (64 * size)
    assert batches == epoch(lengths, size=size, seed=seed, number=0)


def test_epochs_and_seeds_differ_and_lengths_are_alike() -> None:
    lengths = [(i * 37) % 400 for i in range(256)]
    plans = [epoch(lengths, size=8, seed=s, number=n) for s, n in ((0, 0), (0, 1), (1, 0))]
    assert plans[0] != plans[1] != plans[2] != plans[0]
    spread = [max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in plans[0]]
    assert max(spread) < 30
    means = [sum(lengths[i] for i in b) for b in plans[0]]
    assert means != sorted(means)


@settings(max_examples=30, deadline=None)
@given(lengths_of, st.integers(1, 9))
def test_the_batches_of_an_epoch_are_known_beforehand(lengths: list[int], size: int) -> None:
    for number in range(2):
        batches = epoch(lengths, size=size, seed=1, number=number)
        assert len(batches) == batches_of_epoch(len(lengths), size)


def test_a_step_has_the_same_batches_whatever_was_before(nano, tmp_path: Path) -> None:
    chats = [[{"role": "user", "content": "x" * n}, CHAT[1]] for n in range(1, 8)]
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
    processor, config, _ = nano
    told = TrainSettings(model="nano", data=(str(path),), batch=2, accumulate=3, seed=5)

    def source() -> Chats:
        return Chats(told, NANO, config, processor)

    def ids(batches: list[list[Example]]) -> list[list[list[int]]]:
        return [[list(e.ids) for e in batch] for batch in batches]

    one = source()
    steps = [ids(one.batches(step)) for step in range(1, 9)]
    assert [len(step) for step in steps] == [3] * 8
    assert [ids(source().batches(step)) for step in (8, 3)] == [steps[7], steps[2]]
    flat = [x for step in steps for batch in step for x in batch]
    for first in range(0, 42, 7):  # an epoch is four batches of two, two, two and one
        assert len({len(x) for x in flat[first : first + 7]}) == 7
    assert one.count == 7 and one.largest[0] == 2
    with pytest.raises(SettingsError, match=r"there is no data; give --data FILE\.jsonl"):
        Chats(replace(told, data=()), NANO, config, processor)


def test_the_published_template(reference: Path, tmp_path: Path) -> None:
    """A thought, a tool's answer, and an end, as the published template writes them."""
    folder = reference / "hub"
    config, generation = ModelConfig.load(folder), GenerationSettings.load(folder)
    call = {"role": "assistant", "tool_calls": [small.call({"city": "Rome"})]}
    tool = {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "sunny"}
    ask = {"role": "user", "content": "weather?"}
    lines = [
        {"messages": CHAT},
        {"messages": [ask, call], "tools": small.TOOLS},
        {"messages": [ask, call, tool, CHAT[1]], "tools": small.TOOLS},
        {"messages": [ask, CHAT[1] | {"reasoning": "hm"}], "thinking": True},
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    processor = Processor(folder, config)
    examples = Examples(path, processor, config, generation, DataSettings())
    written = [processor.tokenizer.decode([i for i in e.answer if i != 1]) for e in examples]
    assert written == [
        "hello<turn|>",
        '<|tool_call>call:weather{city:<|"|>Rome<|"|>}<tool_call|><|tool_response>',
        "hello<turn|>",
        "<|channel>thought\nhm\n<channel|>hello<turn|>",
    ]
    assert {len(e.answer) for e in examples} == {256}
