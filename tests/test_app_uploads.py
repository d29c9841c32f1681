"""Files that come with a message: what becomes of them, and what is said of the others."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from dg_mlx.app import uploads
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dg_mlx.errors import DGError, MediaError, PromptError


def png(path: Path) -> str:
    Image.new("RGB", (8, 8), "teal").save(path)
    return str(path)


def film(path: Path, frames: int) -> str:
    import av
    import numpy as np

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = 32
        container.start_encoding()
        for _ in range(frames):
            image = np.zeros((32, 32, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


def test_a_text_stays_a_text() -> None:
    assert uploads.content("  hello\n", []) == "hello"


def test_texts_go_before_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n")
    (tmp_path / "b.PY").write_text("print(2)")
    files = [str(tmp_path / "a.txt"), str(tmp_path / "b.PY")]
    assert uploads.content("which?", files) == "a.txt:\none\n\nb.PY:\nprint(2)\n\nwhich?"
    assert uploads.content("", files[:1]) == "a.txt:\none"


def test_pictures_are_bytes_and_videos_paths(tmp_path: Path) -> None:
    picture, video = png(tmp_path / "a.png"), film(tmp_path / "b.mp4", 2)
    found = uploads.content("what?", [picture, video])
    assert found == [
        {"type": "image", "image": Path(picture).read_bytes()},
        {"type": "video", "video": video},
        {"type": "text", "text": "what?"},
    ]
    assert uploads.content("", [picture])[-1] == {"type": "text", "text": ""}


def test_a_gif_is_a_video(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), shade) for shade in ("red", "blue")]
    path = tmp_path / "moves.GIF"
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])
    assert uploads.content("", [str(path)])[0] == {"type": "video", "video": str(path)}


def wrong(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize(
    ("name", "data", "kind", "sentence"),
    [
        ("a.png", b"no picture", MediaError, "picture|image"),
        ("a.mp4", b"no video", MediaError, "is not a video that can be read"),
        ("a.exe", b"MZ", MediaError, "a.exe is no picture, video or text; send one of those"),
        ("noname", b"", MediaError, "noname is no picture, video or text"),
        ("a.wav", b"RIFF", MediaError, "a.wav is no picture, video or text"),
        ("a.txt", b"caf\xe9", PromptError, "a.txt is not UTF-8 text; convert it"),
        ("a.txt", b"x" * 1001, PromptError, "a.txt has .*; a message takes"),
        ("a.png", b"x" * 2001, MediaError, "a.png has .*; at most .* are taken"),
        ("a.mp4", b"x" * 3001, MediaError, "a.mp4 has .*; at most .* are taken"),
    ],
)
def test_what_is_not_taken_gets_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    name: str, data: bytes, kind: type[DGError], sentence: str,
) -> None:  # fmt: skip
    for limit, most in (("MOST_TEXT", 1000), ("MOST_PICTURE", 2000), ("MOST_BYTES", 3000)):
        monkeypatch.setattr(uploads, limit, most)
    with pytest.raises(kind, match=sentence):
        uploads.content("what?", [wrong(tmp_path / name, data)])


def test_a_video_without_frames_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"^empty\.mp4 has no (frames|video track); "):
        uploads.content("what?", [film(tmp_path / "empty.mp4", 0)])


def test_half_a_picture_gets_a_sentence(tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(data, "PNG")
    with pytest.raises(MediaError):
        uploads.content("what?", [wrong(tmp_path / "a.png", data.getvalue()[:500])])


def test_a_file_that_is_gone_gets_a_sentence(tmp_path: Path) -> None:
    for name in ("a.png", "a.mp4", "a.txt"):
        with pytest.raises(MediaError, match="is not here any more; attach it again"):
            uploads.content("what?", [str(tmp_path / name)])


def test_too_many_files_get_a_sentence(tmp_path: Path) -> None:
    files = [png(tmp_path / f"{n}.png") for n in range(uploads.MOST_FILES + 1)]
    assert len(uploads.content("", files[1:])) == uploads.MOST_FILES + 1
    with pytest.raises(PromptError, match="17 files are too many; send 16"):
        uploads.content("", files)


@given(text=st.text(alphabet=" \t\n\r\x0b\u2003"))
def test_nothing_is_no_message(text: str) -> None:
    with pytest.raises(PromptError, match="the message is empty; write something"):
        uploads.content(text, [])


def test_sent_files_go_with_their_folders(tmp_path: Path) -> None:
    own, shared = tmp_path / "own", tmp_path / "shared"
    for folder in (own, shared):
        folder.mkdir()
    files: list[Any] = [png(own / "a.png"), png(shared / "b.png"), str(tmp_path / "no" / "c.png")]
    kept = png(shared / "kept.png")
    uploads.forget(files)
    assert not own.exists() and Path(kept).exists() and not Path(files[1]).exists()
