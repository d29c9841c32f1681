"""Pictures from files, bytes and data URIs to patches.

Legend of array names: P patches, C values of one patch.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import os
import urllib.parse
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from dg_mlx.config import VisionConfig
from dg_mlx.errors import CheckpointError, MediaError, SettingsError
from dg_mlx.model.media import ImagePatches

SOFT_TOKENS = (70, 140, 280, 560, 1120)
"""The budgets of soft tokens per picture that the vision tower was trained for."""


def local_path(source: str | os.PathLike[str], kind: str) -> Path:
    """A path or a file:// address as a path; raises `MediaError` for web addresses."""
    text = os.fspath(source)
    scheme = text.partition("://")[0].lower()
    if scheme == "file":
        return Path(urllib.request.url2pathname(urllib.parse.urlsplit(text).path))
    if "://" in text:
        raise MediaError(
            f"{shorten(text)} is a web address; nothing is fetched. Download the {kind} and give "
            "its path."
        )
    return Path(text).expanduser()


def shorten(text: str, limit: int = 80) -> str:
    """One line, at most `limit` characters, for messages."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def open_image(source: Any) -> Image.Image:
    """Read a picture (path, bytes, data URI or `PIL.Image`) as upright RGB.

    Transparent parts become white, 16-bit grey is scaled to 8 bits. Raises `MediaError`.
    """
    if isinstance(source, Image.Image):
        return _decode(source, "the picture")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(source), "the picture")
    if isinstance(source, str) and source[:5].lower() == "data:":
        return _decode(io.BytesIO(data_uri(source)), "the picture in the data URI")
    if not isinstance(source, (str, os.PathLike)) or not os.fspath(source):
        raise MediaError(
            f"a picture is {shorten(repr(source))}; give a path, bytes, a data URI or a PIL.Image."
        )
    path = local_path(os.fsdecode(source), "picture")
    if not is_file(path):
        raise MediaError(f"{shorten(str(path))} is not a file; check the picture's path.")
    return _decode(path, str(path))


def is_file(path: Path) -> bool:
    """Whether a path names a file, whatever was given as a path."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # longer than the system allows, or with a null byte
        return False


def data_uri(uri: str) -> bytes:
    """The bytes in a data URI. Raises `MediaError`."""
    head, comma, body = uri.partition(",")
    try:
        if not comma or not head.lower().endswith(";base64"):
            raise ValueError("no base64 part")
        compact = "".join(urllib.parse.unquote(body).split())
        return base64.b64decode(compact, validate=True)
    except (ValueError, binascii.Error) as error:
        raise MediaError(
            f"the data URI {shorten(uri, 40)} cannot be read ({error}); give "
            "data:image/png;base64,… with a whole picture."
        ) from None


def _decode(source: Image.Image | Path | io.BytesIO, name: str) -> Image.Image:
    try:
        if isinstance(source, Image.Image):
            return _upright_rgb(source)
        with warnings.catch_warnings():
            # Pillow warns from 89 megapixels and refuses from 179; the refusal is enough.
            warnings.simplefilter("ignore")
            with Image.open(source, formats=_formats()) as image:
                return _upright_rgb(image)
    except Image.DecompressionBombError:
        raise MediaError(f"{name} has too many pixels (above 179 million); shrink it.") from None
    except UnidentifiedImageError:
        raise MediaError(f"{name} is not a picture; give a PNG, JPEG, WebP or the like.") from None
    except Exception as error:  # decoders raise all sorts on broken files
        reason = shorten(str(error)) or type(error).__name__
        raise MediaError(f"{name} cannot be read ({reason}); save it again as PNG.") from error


def _formats() -> list[str]:
    """Every format of this Pillow but EPS, which would run Ghostscript on the file."""
    Image.init()
    return [name for name in Image.ID if name != "EPS"]


def _upright_rgb(image: Image.Image) -> Image.Image:
    image.load()
    upright = ImageOps.exif_transpose(image)
    image = image if upright is None else upright
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _eight_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Grey values of 16 bits, or of 0..1, as 0..255; what is within 0..255 already stays."""
    grey = np.nan_to_num(values.astype(np.float64))
    if values.dtype.kind == "u" or grey.max() > 255:
        grey = grey / 257
    elif values.dtype.kind == "f" and grey.max() <= 1:
        grey = grey * 255
    bytes_: NDArray[np.uint8] = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return bytes_


class ImageProcessor:
    """Cuts pictures into patches the way the checkpoint was trained.

    Source: transformers' `Gemma4ImageProcessorPil` with the values of processor_config.json.
    """

    def __init__(self, folder: Path, vision: VisionConfig) -> None:
        """Raises `CheckpointError` when processor_config.json contradicts the vision tower."""
        # Not at the top: transformers takes seconds to import.
        from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

        settings = processor_settings(folder)
        values = dict(settings.get("image_processor") or {})
        for key in ("image_processor_type", "image_seq_length"):
            values.pop(key, None)
        wanted = {
            "patch_size": vision.patch_size,
            "pooling_kernel_size": vision.pooling_kernel_size,
        }
        for key, value in wanted.items():
            if values.setdefault(key, value) != value:
                raise CheckpointError(
                    f"processor_config.json has {key} = {values[key]}, config.json {value}; fetch "
                    "the checkpoint again."
                )
        try:
            self._processor: Any = Gemma4ImageProcessorPil(**values)
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"processor_config.json cannot be used ({shorten(str(error))}); fetch the "
                "checkpoint again."
            ) from error
        self._vision = vision
        video = settings.get("video_processor") or {}
        self.frames: int = video.get("num_frames") or 32
        """At most so many frames of a video."""
        self.frame_tokens: int = video.get("max_soft_tokens") or 70
        """At most so many soft tokens a frame."""

    def patches(self, image: Image.Image, tokens: int | None = None) -> ImagePatches:
        """Cut an RGB picture into patches; `start` is 0 until the prompt places it.

        `tokens`: at most so many soft tokens; None: the checkpoint's default. Raises `MediaError`,
        and `SettingsError` for a number of tokens that the vision tower does not know.
        """
        if tokens is not None and tokens not in SOFT_TOKENS:
            choices = ", ".join(map(str, SOFT_TOKENS))
            raise SettingsError(f"image_tokens is {tokens!r}; choose one of {choices}.")
        options = {} if tokens is None else {"max_soft_tokens": tokens}
        try:
            batch = self._processor(images=image, return_tensors="np", **options)
        except ValueError as error:
            size = f"{image.width} x {image.height}"
            raise MediaError(
                f"a picture of {size} pixels cannot be cut into patches ({shorten(str(error))}); "
                "crop it."
            ) from error
        positions = np.asarray(batch["image_position_ids"][0])
        real = positions[:, 0] >= 0
        columns, rows = (int(n) + 1 for n in positions.max(axis=0))
        pixels_PC = np.ascontiguousarray(batch["pixel_values"][0][real], dtype=np.float32)
        assert len(pixels_PC) == rows * columns
        return ImagePatches(
            pixels_PC=pixels_PC,
            grid=(rows, columns),
            start=0,
            tokens=rows * columns // self._vision.pooling_kernel_size**2,
            key=_key(pixels_PC, (rows, columns)),
        )


def _key(pixels_PC: NDArray[np.float32], grid: tuple[int, int]) -> str:
    digest = hashlib.sha256(repr((grid, pixels_PC.shape)).encode())
    digest.update(pixels_PC.tobytes())
    return digest.hexdigest()


def processor_settings(folder: Path) -> dict[str, Any]:
    """The checkpoint's processor_config.json, or nothing. Raises `CheckpointError`."""
    path = folder / "processor_config.json"
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); fetch it again.") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a JSON object; fetch it again.")
    return data
