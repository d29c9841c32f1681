"""Prompts with the real tokenizer and template equal those of transformers."""

import json
from pathlib import Path

import numpy as np
import pytest
import small
from small import CALLS, PICTURE, TOOLS, call, check_media, text, user

from dg_mlx.config import ModelConfig
from dg_mlx.processor import Processor

pytestmark = pytest.mark.reference

CHATS = {
    "plain": user("Write a haiku.\n\nAbout  spaces "),
    "system": [{"role": "system", "content": " Be brief. "}, *user("Hi")],
    "developer": [{"role": "developer", "content": [text("Be brief.")]}, *user("Hi")],
    "turns": [*user("1"), {"role": "assistant", "content": "<|channel>thought\nx<channel|>2"},
              *user("3 <turn|> 🏳️‍🌈")],
    "reasoning": [*user("1"), {"role": "assistant", "reasoning": "so",
                               "tool_calls": [call({"city": "Bern"})]},
                  {"role": "tool", "tool_call_id": "c1", "content": "rain"}],
    "tool answer in parts": [*user("1"), {**CALLS, "content": ""},
                             {"role": "tool", "name": "weather", "content": [text("a"), text("b")]},
                             {"role": "assistant", "content": "It rains."}, *user("Oh")],
}  # fmt: skip


@pytest.fixture(scope="module")
def real(reference) -> Processor:
    return Processor(reference / "hub", ModelConfig.load(reference / "hub"))


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return small.video(tmp_path_factory.mktemp("video") / "a.mkv")


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("name", list(CHATS))
def test_text_prompts_equal_the_reference(real, name, tools, thinking):
    wanted = real.tokenizer.apply_chat_template(
        CHATS[name], tools=tools, enable_thinking=thinking, add_generation_prompt=True
    )["input_ids"]
    prompt = real.encode(CHATS[name], tools=tools, thinking=thinking)
    assert prompt.ids == wanted and prompt.ids.count(2) == 1
    assert prompt.thinking_open == (name == "reasoning" and thinking)


def test_picture_prompts_equal_the_reference_processor(real, reference, monkeypatch):
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
    from transformers.models.gemma4.processing_gemma4 import Gemma4Processor

    # The feature extractor and the video processor are not needed, and need torch.
    monkeypatch.setattr(Gemma4Processor, "check_argument_for_proper_class", lambda *_: None)
    settings = json.loads((reference / "hub/processor_config.json").read_text())["image_processor"]
    theirs = Gemma4Processor(
        feature_extractor=None,
        image_processor=Gemma4ImageProcessorPil(**settings),
        tokenizer=real.tokenizer,
        video_processor=None,
    )
    pictures = [PICTURE, PICTURE.resize((20, 300)), PICTURE.rotate(90, expand=True)]
    messages = [
        *user({"type": "image", "image": pictures[0]}, text(" What  is this? ")),
        {"role": "assistant", "content": "A picture."},
        *user(text("And"), {"type": "image", "image": pictures[1]}, text("or"),
              {"type": "image", "image": pictures[2]}),
    ]  # fmt: skip
    rendered = real.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    wanted = theirs(text=rendered, images=[pictures], add_special_tokens=False)
    prompt = real.encode(messages)
    assert prompt.ids == wanted["input_ids"][0]
    check_media(real, prompt)
    for ours, pixels in zip(prompt.media.images, wanted["pixel_values"], strict=True):
        np.testing.assert_array_equal(ours.pixels_PC, pixels[: len(ours.pixels_PC)])
    typed = [dict(messages[0], content=[*messages[0]["content"], text("<|image|>")]), *messages[1:]]
    again = real.encode(typed)
    assert [i.key for i in again.media.images] == [i.key for i in prompt.media.images]
    assert again.ids.count(258880) == prompt.ids.count(258880) + 1


def test_video_prompts_equal_the_reference(real, video):
    from transformers.models.gemma4.processing_gemma4 import Gemma4Processor
    from transformers.video_utils import VideoMetadata, default_sample_indices_fn

    prompt = real.encode(user(text("See: "), {"type": "video", "video": str(video)}, text("Why?")))
    metadata = VideoMetadata(total_num_frames=70, fps=1.0)
    metadata.frames_indices = default_sample_indices_fn(metadata, num_frames=32)
    tokens = [image.tokens for image in prompt.media.images]
    assert len(set(tokens)) == 1 and len(tokens) == 32
    theirs = Gemma4Processor.__new__(Gemma4Processor)
    theirs.boi_token, theirs.eoi_token, theirs.video_token = "<|image>", "<image|>", "<|image|>"
    frames = theirs.replace_video_token(
        {"num_soft_tokens_per_video": [tokens[0]], "video_metadata": [metadata]}, 0
    )
    wanted = f"<bos><|turn>user\nSee:{frames}Why?<turn|>\n<|turn>model\n"
    assert prompt.ids == real.tokenizer.encode(wanted, add_special_tokens=False)
    check_media(real, prompt)
