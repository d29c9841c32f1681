"""Messages to ids and pictures: what goes where, and errors that name the fix."""

from pathlib import Path

import numpy as np
import pytest
import small
from small import CALLS, PART, TOOLS, call, check_media, text, user

import dg_mlx.nano
from dg_mlx.config import ModelConfig
from dg_mlx.errors import CheckpointError, MediaError, PromptError, SettingsError
from dg_mlx.processor import Processor

TOKENIZER = small.tokenizer()


@pytest.fixture(scope="module")
def processor(tmp_path_factory) -> Processor:
    return Processor(small.save(tmp_path_factory.mktemp("small")), small.config(TOKENIZER))


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return small.video(tmp_path_factory.mktemp("video") / "a.mkv")


def test_a_string_is_one_user_message(processor):
    prompt = processor.encode("the question ")
    assert prompt == processor.encode(user("the question "))
    decoded = processor.tokenizer.decode(prompt.ids)
    assert decoded == "<bos><|turn>user\nthe question<turn|>\n<|turn>model"
    assert prompt.media is None and prompt.thinking_open is False


def test_ids_stay_as_they_are(processor):
    assert processor.encode([5, 7, 2]).ids == [5, 7, 2]
    assert processor.encode(np.array([5, 7], np.int32)).ids == [5, 7]
    assert type(processor.encode(np.array([5])).ids[0]) is int
    channel, end = TOKENIZER.convert_tokens_to_ids(["<|channel>", "<channel|>"])
    assert processor.encode([30, channel, 31]).thinking_open
    assert not processor.encode([30, channel, 31, end, 32]).thinking_open
    size = len(TOKENIZER)
    for ids, words in (
        ([1, size], rf"token 1 is {size}; this checkpoint knows 0..{size - 1}"),
        ([1, -1], "token 1 is -1"),
        ([1, "a"], "token 1 is 'a'; give whole numbers only"),
        ([1, True], "token 1 is True; give whole numbers"),
    ):
        with pytest.raises(PromptError, match=words):
            processor.encode(ids)
    with pytest.raises(PromptError, match="have no effect on token ids"):
        processor.encode([1], thinking=True)


def test_pictures_take_their_soft_tokens(processor):
    prompt = processor.encode(user(text("a"), PART, text("the"), PART), image_tokens=70)
    first, second = prompt.media.images
    assert first.key == second.key and first.start < second.start and first.row == 0
    assert 0 < first.tokens <= 70 and first.tokens == first.grid[0] * first.grid[1] // 9
    check_media(processor, prompt)
    more = processor.encode(user(PART)).media.images[0].tokens
    assert 70 < more <= 280
    with pytest.raises(SettingsError, match="image_tokens is 71; choose one of 70, 140"):
        processor.encode(user(PART, text("a")), image_tokens=71)


def test_a_typed_image_token_is_an_ordinary_token(processor):
    plain = processor.encode(user(text("a the b"), PART, text("c")))
    typed = processor.encode(user(text("a <|image|>the b<|image|>"), PART, text("c<|image|>")))
    assert len(typed.media.images) == 1
    assert typed.media.images[0].key == plain.media.images[0].key
    check_media(processor, typed)
    image = processor._config.image_token_id
    assert typed.ids.count(image) == plain.ids.count(image) + 3
    assert processor.encode("<|image|>").ids.count(image) == 1
    # Characters from the private-use area come through, whatever marks the typed tokens.
    private = "\U000f0000\U000f0001\ue000"
    decoded = processor.tokenizer.decode(processor.encode(private + "<|image|>").ids)
    assert private + "<|image|>" in decoded


def test_a_video_is_its_frames_with_times(processor, video):
    prompt = processor.encode(user(text("see:"), {"type": "video", "video": video}, text("the")))
    assert len(prompt.media.images) == 32
    check_media(processor, prompt)
    assert all(image.tokens <= 70 for image in prompt.media.images)
    image_token = processor.tokenizer.convert_ids_to_tokens(processor._config.image_token_id)
    decoded = processor.tokenizer.decode(prompt.ids).replace(image_token, "")
    seconds = [i * 70 // 32 for i in range(32)]
    frames = " ".join(f"{s // 60:02d}:{s % 60:02d} <|image><image|>" for s in seconds)
    assert f"see:{frames}the" in decoded


def test_openai_picture_addresses(processor, tmp_path):
    path = tmp_path / "a.png"
    PART["image"].save(path)
    wanted = processor.encode(user(PART, text("a"))).media.images[0].key
    for url in (str(path), path.as_uri()):
        for value in (url, {"url": url, "detail": "auto"}):
            prompt = processor.encode(user({"type": "image_url", "image_url": value}, text("a")))
            assert prompt.media.images[0].key == wanted
    with pytest.raises(MediaError, match="web address; nothing is fetched"):
        processor.encode(
            user({"type": "image_url", "image_url": {"url": "https://a.b/c"}}, text(""))
        )


def test_a_text_only_checkpoint_refuses_pictures(tmp_path, video):
    ours = Processor(small.save(tmp_path), small.config(TOKENIZER, vision=False))
    with pytest.raises(MediaError, match="reads text only; leave out the image or choose"):
        ours.encode(user(PART, text("a")))
    with pytest.raises(MediaError, match="reads text only; leave out the video or choose"):
        ours.encode(user({"type": "video", "video": video}, text("a")))
    assert ours.encode("<|image|>").media is None


def test_tool_arguments_may_be_json_text(processor):
    def prompt(arguments):
        return processor.encode(
            [*user("a"), {"role": "assistant", "content": None, "tool_calls": [call(arguments)]},
             {"role": "tool", "tool_call_id": "c1", "content": "rain"}]
        )  # fmt: skip

    assert prompt('{"city": "Bern"}') == prompt({"city": "Bern"})
    assert "('city', 'Bern')" in processor.decode(prompt({"city": "Bern"}).ids)
    assert prompt("") == prompt(None) == prompt({})


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "there are no messages; give at least one"),
        ("", "message 0 .user. is empty; write something"),
        (user([]), "message 0 .user. is empty"),
        (7, "messages are a int; give a string, a list"),
        ({"role": "user"}, "messages are a dict; give a string, a list"),
        (["hi"], "message 0 is 'hi'; write"),
        ([{"role": "robot", "content": "a"}], "has role 'robot'; choose one of system, developer"),
        ([{"content": "a"}], "has role None"),
        (user(3), "has content 3; give a string or a list of parts"),
        (user("a", text("b")), "part 0 is 'a'; its type must be text, image"),
        (user({"type": "audio"}, text("b")), "its type must be text, image, image_url or video"),
        (user({"type": "text"}, text("b")), "has no text; write"),
        (user({"type": "image", "url": "a"}, text("b")), 'has no image; write {"type": "image"'),
        (user({"type": "image_url", "image_url": {}}, text("b")), "has no image_url"),
        ([{"role": "assistant", "content": [PART]}], "put it into a user message"),
        ([{"role": "user", "content": "a", "colour": "red"}], "has 'colour', which has no effect"),
        ([{"role": "user", "content": "a", "tool_calls": [call({})]}], "only an assistant message"),
        ([{"role": "assistant", "tool_calls": {}}, *user("a"), {"role": "tool", "content": "x"}],
         "message 2 .tool. answers no call"),
        ([*user("a"), CALLS], "message 1 .assistant. calls tools that nothing answers"),
        ([{"role": "assistant", "tool_calls": [7]}], "tool call 0 is 7; write"),
        ([{"role": "assistant", "tool_calls": "x"}], "tool_calls must be a list"),
        ([{"role": "assistant", "tool_calls": [call("{")]}], "arguments are not JSON"),
        ([{"role": "assistant", "tool_calls": [call("[]")]}], "arguments are .*give a JSON object"),
        ("a\ud800", "has half a character .a lone surrogate.; remove it"),
    ],
)  # fmt: skip
def test_errors_name_the_message_and_the_fix(processor, messages, words):
    with pytest.raises(PromptError, match=words) as caught:
        processor.encode(messages)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_tools_are_checked(processor):
    assert "weather" in processor.tokenizer.decode(processor.encode("a", tools=TOOLS).ids)
    for tools, words in (
        ([{"name": "weather"}], r"tool 0 is .* write \{"),
        (TOOLS[0], "tools are a dict; give a list"),
        ([{"function": {"name": "f", "parameters": []}}], "parameters must be a JSON schema"),
    ):
        with pytest.raises(PromptError, match=words):
            processor.encode("a", tools=tools)


def folder_with_template(folder: Path, template: str | None) -> Processor:
    small.save(folder)
    (folder / "chat_template.jinja").unlink()
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return Processor(folder, small.config(TOKENIZER))


def test_templates_that_lack_something(tmp_path):
    bare = folder_with_template(tmp_path / "a", "{{ messages[0].content }}")
    for options, words in (
        ({"thinking": True}, "has no thinking; leave it out"),
        ({"tools": TOOLS}, "has no tools; leave it out"),
    ):
        with pytest.raises(PromptError, match=words):
            bare.encode("a", **options)
    blind = folder_with_template(tmp_path / "b", "text only")
    with pytest.raises(PromptError, match="took 0 of 1 pictures and videos"):
        blind.encode(user(PART, text("a")))
    strict = folder_with_template(tmp_path / "c", "{{ raise_exception('no\n such thing') }}")
    with pytest.raises(PromptError, match=r"refuses these messages \(no such thing\)"):
        strict.encode("a")
    none = folder_with_template(tmp_path / "d", None)
    with pytest.raises(CheckpointError, match=r"has no chat template; copy chat_template.jinja"):
        none.encode("a")
    assert none.encode([5]).ids == [5]


def test_a_missing_tokenizer(tmp_path):
    with pytest.raises(CheckpointError, match=r"the tokenizer in .* cannot be loaded") as caught:
        Processor(tmp_path, small.config(TOKENIZER))
    assert "\n" not in str(caught.value)


def test_pieces_for_drawing(processor):
    def piece(token):
        return processor.piece(TOKENIZER.convert_tokens_to_ids(token))

    assert [piece(t) for t in ("th", "▁th", "\n", "<0x41>", "<0xC3>", "<|channel>", "<pad>")] == [
        "th", " th", "\n", "A", "\ufffd", "<|channel>", "<pad>"]  # fmt: skip
    assert piece("th") is piece("th")
    assert processor.decode(TOKENIZER.encode("<bos>the é<turn|>")) == "the é"


def test_replies_use_the_checkpoints_tokens(processor):
    parser = processor.reply(thinking_open=True)
    parser.feed(TOKENIZER.encode("hm\n<channel|>Hi<turn|>"))
    assert (parser.thought, parser.text) == ("hm", "Hi")


def test_the_bundled_checkpoint():
    folder = Path(dg_mlx.nano.__file__).parent
    if not (folder / "chat_template.jinja").exists():
        pytest.skip("nano is not bundled yet")
    nano = Processor(folder, ModelConfig.load(folder))
    messages = [{"role": "system", "content": "é"}, *user("a"), {**CALLS, "content": None},
                {"role": "tool", "tool_call_id": "c1", "content": "x"}]  # fmt: skip
    for thinking in (False, True):
        wanted = nano.tokenizer.apply_chat_template(
            messages, tools=TOOLS, enable_thinking=thinking, add_generation_prompt=True
        )["input_ids"]
        assert nano.encode(messages, tools=TOOLS, thinking=thinking).ids == wanted
    assert nano.encode("a").ids.count(nano.tokenizer.bos_token_id) == 1
    parser = nano.reply()
    arguments = '{city:<|"|>Zürich<|"|>}'
    parser.feed(nano.tokenizer.encode(
        f"<|channel>thought\nhm\n<channel|>Sí.<|tool_call>call:weather{arguments}<tool_call|>",
        add_special_tokens=False,
    ))  # fmt: skip
    parser.finish()
    assert (parser.thought, parser.text) == ("hm", "Sí.")
    assert parser.tool_calls[0]["function"]["arguments"] == {"city": "Zürich"}
