"""A video as a few of its frames, with their times."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from dg_mlx.errors import MediaError

from .images import is_file, local_path, shorten

T = TypeVar("T")

# Playlists and text would otherwise be "videos" that open other files or the network.
_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,mpegvideo,"
    "ogg,flv,asf,apng,h264,hevc,m4v,mxf,dv,webp",
}
_UNKNOWN_FPS = 24.0  # as Gemma4Processor


def sample_indices(total: int, limit: int) -> list[int]:
    """At most `limit` frame indices, evenly spread from 0. Source: `default_sample_indices_fn`."""
    count = min(total, limit)
    return [i * total // count for i in range(count)]


def timestamp(seconds: float) -> str:
    """Minutes and seconds, "mm:ss". Source: `Gemma4Processor.replace_video_token`."""
    return f"{int(seconds // 60):02d}:{int(seconds % 60):02d}"


def read_frames(
    source: str | os.PathLike[str], limit: int, prepare: Callable[[Image.Image], T]
) -> list[tuple[float, T]]:
    """Sample at most `limit` frames: (seconds, `prepare(frame)`), one frame in memory at a time.

    Frames are upright RGB. Raises `MediaError`.
    """
    if not isinstance(source, (str, os.PathLike)) or not os.fspath(source):
        raise MediaError(f"a video is {shorten(repr(source))}; give the path of a file.")
    path = local_path(os.fsdecode(source), "video")
    if not is_file(path):
        raise MediaError(f"{shorten(str(path))} is not a file; check the video's path.")
    with _opened(path) as (_, stream):
        total = stream.frames
    if total < 1:
        total = _count(path)
    frames, seen = _sample(path, sample_indices(total, limit), prepare)
    if len(frames) < min(total, limit) and seen > 0:
        # The container promised more frames than it has.
        frames, _ = _sample(path, sample_indices(seen, limit), prepare)
    if not frames:
        raise MediaError(f"{path} has no frames; check that it plays.")
    return frames


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its first moving-picture stream; decoder errors become `MediaError`."""
    import av  # not at the top: text-only use does without it

    try:
        with av.open(os.fspath(path), options=dict(_OPTIONS)) as container:
            stream = next(
                (s for s in container.streams.video if not _is_cover(s)),
                None,
            )
            if stream is None:
                raise MediaError(f"{path} has no video track; give a video, not a sound file.")
            stream.thread_type = "AUTO"
            yield container, stream
    except (av.error.FFmpegError, OSError) as error:
        reason = shorten(getattr(error, "strerror", None) or str(error))
        raise MediaError(
            f"{shorten(str(path))} is not a video that can be read ({reason}); give an MP4, MOV, "
            "WebM or the like."
        ) from error


def _is_cover(stream: Any) -> bool:
    import av

    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _count(path: Path) -> int:
    """Frames that decode, for containers that do not state their number."""
    with _opened(path) as (container, stream):
        return sum(1 for _ in container.decode(stream))


def _sample(
    path: Path, indices: list[int], prepare: Callable[[Image.Image], T]
) -> tuple[list[tuple[float, T]], int]:
    """The frames at `indices` (rising), and how many frames were decoded to get there."""
    wanted, frames, seen = set(indices), [], 0
    with _opened(path) as (container, stream):
        fps = float(stream.average_rate or stream.guessed_rate or _UNKNOWN_FPS)
        for frame in container.decode(stream) if indices else ():
            if seen in wanted:
                frames.append((seen / fps, prepare(_upright(frame))))
            seen += 1
            if len(frames) == len(indices):
                break
    return frames, seen


def _upright(frame: Any) -> Image.Image:
    """The frame as it is meant to be seen: phones store a turn instead of turning the pixels."""
    image: Image.Image = frame.to_image()
    turn = round(getattr(frame, "rotation", 0)) % 360
    return image.rotate(turn, expand=True) if turn else image
