"""Videos as sampled frames with times."""

import math
import struct

import av
import numpy as np
import pytest
from PIL import Image

from dg_mlx.errors import MediaError
from dg_mlx.processor.video import read_frames, sample_indices, timestamp


def write(path, count: int, *, codec: str = "mpeg4", **options) -> None:
    """A video whose frame number is its brightness, in steps of 4."""
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.bit_rate = 4_000_000
        for i in range(count):
            pixels = np.full((48, 64, 3), 4 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def number(image: Image.Image) -> int:
    return round(float(np.asarray(image).mean()) / 4)


@pytest.mark.parametrize("total", [1, 2, 31, 32, 33, 50, 63, 64, 1000])
def test_indices_as_the_reference_samples(total):
    from transformers.video_utils import VideoMetadata, default_sample_indices_fn

    wanted = default_sample_indices_fn(VideoMetadata(total_num_frames=total), min(total, 32))
    assert sample_indices(total, 32) == wanted.tolist()
    assert sample_indices(0, 32) == []


def test_timestamps():
    assert [timestamp(s) for s in (0, 59.99, 60, 6000)] == ["00:00", "00:59", "01:00", "100:00"]


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "mpeg4"), ("a.mkv", "mpeg4"), ("a.avi", "mpeg4"), ("a.ts", "mpeg2video")],
)
def test_frames_of_containers_with_and_without_a_count(tmp_path, name, codec):
    write(tmp_path / name, 50, codec=codec)
    frames = read_frames(tmp_path / name, 8, number)
    indices = sample_indices(50, 8)
    assert [value for _, value in frames] == pytest.approx(indices, abs=1)
    assert [seconds for seconds, _ in frames] == [i / 10 for i in indices]


def test_a_short_video_gives_all_its_frames(tmp_path):
    write(tmp_path / "a.mp4", 3)
    assert [s for s, _ in read_frames(str(tmp_path / "a.mp4"), 32, number)] == [0, 0.1, 0.2]
    assert len(read_frames((tmp_path / "a.mp4").as_uri(), 2, number)) == 2


def test_frames_are_prepared_one_by_one(tmp_path):
    write(tmp_path / "a.mp4", 4)
    sizes = read_frames(tmp_path / "a.mp4", 2, lambda image: (image.mode, image.size))
    assert sizes == [(0.0, ("RGB", (64, 48))), (0.2, ("RGB", (64, 48)))]


def test_a_container_that_promises_too_many_frames(tmp_path):
    path = tmp_path / "a.avi"
    write(path, 10)
    data = bytearray(path.read_bytes())
    for tag, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):
        at = data.index(tag) + offset
        assert struct.unpack_from("<I", data, at) == (10,)
        struct.pack_into("<I", data, at, 1000)
    path.write_bytes(data)
    times = [seconds for seconds, _ in read_frames(path, 4, number)]
    assert times == [0, 0.2, 0.5, 0.7]


def test_a_turn_by_a_quarter_goes_the_right_way(tmp_path):
    path = tmp_path / "a.mp4"
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:, :32] = 255  # left half white
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    data = path.read_bytes()
    at = data.index(b"tkhd") + 4 + 40  # the display matrix
    # x' = -y, y' = x: a quarter clockwise, so what was left is on top.
    quarter = (0, 1 << 16, 0, -(1 << 16) & 0xFFFFFFFF, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data[:at] + struct.pack(">9I", *quarter) + data[at + 36 :])
    ((_, image),) = read_frames(path, 1, lambda image: image)
    assert math.isclose(np.asarray(image)[:20].mean(), 255, abs_tol=10)
    assert math.isclose(np.asarray(image)[-20:].mean(), 0, abs_tol=10)


def sound(path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_errors_are_one_line_and_name_the_fix(tmp_path):
    text, picture, playlist = (tmp_path / n for n in ("a.txt", "a.png", "a.m3u8"))
    text.write_text("hello world\n" * 50)
    Image.new("RGB", (9, 9)).save(picture)
    playlist.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    sound(tmp_path / "a.m4a")
    write(tmp_path / "cut.mp4", 5)
    cut = (tmp_path / "cut.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(cut[:200])
    cases = {
        text: "a.txt is not a video that can be read",
        picture: "a.png is not a video that can be read",
        playlist: "a.m3u8 is not a video that can be read",
        tmp_path / "cut.mp4": "is not a video that can be read",
        tmp_path / "a.m4a": "has no video track; give a video",
        tmp_path / "none.mp4": "none.mp4 is not a file; check the video's path",
        tmp_path: "is not a file",
        "https://example.org/a.mp4": "is a web address; nothing is fetched. Download the video",
        b"bytes": "give the path of a file",
        None: "give the path of a file",
    }
    for source, words in cases.items():
        with pytest.raises(MediaError, match=words) as caught:
            read_frames(source, 4, number)
        assert "\n" not in str(caught.value)


def test_a_video_without_frames(tmp_path):
    path = tmp_path / "a.mp4"
    write(path, 3, options={"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + 4])
    with pytest.raises(MediaError, match=r"a.mp4 has no frames; check that it plays"):
        read_frames(path, 4, number)
