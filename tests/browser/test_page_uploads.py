"""Files that come with a message: those that are taken, and a sentence for those that are not."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest
from conftest import Tab

pytestmark = pytest.mark.browser

REMOVE = "#dg-box [aria-label='Remove file']"


def picture(side: int = 32, *, noisy: bool = False) -> bytes:
    from PIL import Image

    image = Image.new("RGB", (side, side), "teal")
    if noisy:
        image = Image.frombytes("RGB", (side, side), random.Random(0).randbytes(3 * side * side))
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def video(path: Path, frames: int) -> bytes:
    import av
    import numpy as np

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = 32
        container.start_encoding()
        for shade in range(frames):
            image = np.full((32, 32, 3), shade, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path.read_bytes()


def attach(tab: Tab, *files: tuple[str, str, bytes]) -> None:
    """Choose files, and wait until the page has them."""
    tab.page.locator("#dg-box input[type=file]").set_input_files(
        [{"name": name, "mimeType": kind, "buffer": data} for name, kind, data in files]
    )


def attached(tab: Tab, count: int = 1) -> None:
    tab.page.wait_for_function(
        "([files, n]) => document.querySelectorAll(files).length === n", arg=[REMOVE, count]
    )


def detach(tab: Tab) -> None:
    tab.page.locator("#dg-box .thumbnail-item, #dg-box .thumbnail-wrapper").first.hover()
    tab.page.locator(REMOVE).first.click()


def test_a_picture_is_sent_and_shown(tab: Tab) -> None:
    attach(tab, ("photo.png", "image/png", picture()))
    attached(tab)
    assert tab.ask("what is this?").endswith("One image.")
    tab.page.wait_for_selector("#dg-messages .message img")
    attached(tab, 0)
    tab.page.reload()
    tab.ready()
    tab.page.wait_for_selector("#dg-messages .message img")


def test_a_video_is_sent_and_shown(tab: Tab, tmp_path: Path) -> None:
    attach(tab, ("film.mp4", "video/mp4", video(tmp_path / "film.mp4", 3)))
    attached(tab)
    assert tab.ask("what happens?").endswith("One video.")
    tab.page.wait_for_selector("#dg-messages .message video")


def test_a_text_becomes_part_of_the_message(tab: Tab) -> None:
    attach(tab, ("notes.txt", "text/plain", b"the sea is blue\n"))
    attached(tab)
    answer = tab.ask("and the sky?")
    assert "notes.txt:" in answer and "the sea is blue" in answer and "and the sky?" in answer


@pytest.mark.parametrize(
    ("name", "kind", "data", "sentence"),
    [
        ("photo.png", "image/png", b"this is no picture", "picture"),
        ("photo.png", "image/png", picture()[:60], "picture"),
        ("film.mp4", "video/mp4", b"this is no video", "is not a video that can be read"),
        ("notes.txt", "text/plain", b"\xff\xfe\x00caf\xe9", "is not UTF-8 text; convert it"),
        ("photo.png", "image/png", picture(220, noisy=True), "at most .* are taken"),
    ],
    ids=["no picture", "half a picture", "no video", "no text", "large"],
)
def test_a_file_that_is_not_taken_gets_a_sentence(
    tab: Tab, name: str, kind: str, data: bytes, sentence: str
) -> None:
    attach(tab, (name, kind, data))
    attached(tab)
    tab.send("what is this?")
    tab.alert(sentence)
    assert tab.messages == []
    works_again(tab)


def works_again(tab: Tab) -> None:
    """What was written is still there, and goes without the file."""
    assert tab.page.input_value("#dg-box textarea") == "what is this?"
    detach(tab)
    attached(tab, 0)
    assert tab.ask("go on").endswith("to “go on”.")


def test_a_video_without_frames_gets_a_sentence(tab: Tab, tmp_path: Path) -> None:
    attach(tab, ("empty.mp4", "video/mp4", video(tmp_path / "empty.mp4", 0)))
    attached(tab)
    tab.send("what is this?")
    tab.alert("empty.mp4")
    works_again(tab)


def test_an_enormous_file_is_refused_before_it_is_there(tab: Tab) -> None:
    attach(tab, ("film.mp4", "video/mp4", bytes(3_000_000)))
    tab.alert("exceed the maximum allowed size")
    attached(tab, 0)
    assert tab.ask("go on").endswith("to “go on”.")
