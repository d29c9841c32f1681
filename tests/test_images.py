"""Pictures of every kind to patches, and errors that name the fix."""

import base64
import io
import subprocess
import sys

import numpy as np
import pytest
import small
from PIL import Image
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

from dg_mlx.errors import CheckpointError, MediaError, SettingsError
from dg_mlx.processor.images import ImageProcessor, open_image

VISION = small.config(small.tokenizer()).vision
RNG = np.random.default_rng(0)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def processor(folder, **settings) -> ImageProcessor:
    return ImageProcessor(small.save(folder, **settings), VISION)


@pytest.mark.parametrize("size", [(100, 60), (3, 50), (50, 3), (1, 1), (1000, 2), (2, 1000)])
@pytest.mark.parametrize("tokens", [None, 70])
def test_patches_equal_the_reference_without_its_padding(tmp_path, size, tokens):
    image = noise(*size)
    ours = processor(tmp_path).patches(image, tokens)
    wanted = Gemma4ImageProcessorPil(max_soft_tokens=tokens or 280)(images=image)
    count = ours.grid[0] * ours.grid[1]
    np.testing.assert_array_equal(ours.pixels_PC, wanted["pixel_values"][0][:count])
    assert (wanted["image_position_ids"][0][count:] == -1).all()
    assert ours.tokens == wanted["num_soft_tokens_per_image"][0] <= (tokens or 280)
    last_column, last_row = wanted["image_position_ids"][0][count - 1]
    assert ours.grid == (last_row + 1, last_column + 1)
    assert ours.pixels_PC.dtype == np.float32 and ours.pixels_PC.max() <= 1
    assert ours.grid[0] % 3 == ours.grid[1] % 3 == 0


def test_settings_of_the_checkpoint_are_used(tmp_path):
    ours = processor(tmp_path, max_soft_tokens=140, image_processor_type="Gemma4ImageProcessor")
    assert 70 < ours.patches(noise(64, 64)).tokens <= 140
    with pytest.raises(SettingsError, match=r"image_tokens is 100; choose one of 70, 140"):
        ours.patches(noise(64, 64), 100)


def test_settings_that_contradict_the_model_or_are_broken(tmp_path):
    with pytest.raises(CheckpointError, match=r"patch_size = 8, config.json 16"):
        processor(tmp_path, patch_size=8)
    with pytest.raises(CheckpointError, match=r"cannot be used \(.*must be one of"):
        processor(tmp_path, max_soft_tokens=3)
    for text, words in (("{", "cannot be read"), ("[]", "not a JSON object")):
        (tmp_path / "processor_config.json").write_text(text)
        with pytest.raises(CheckpointError, match=words):
            ImageProcessor(tmp_path, VISION)


def test_equal_pictures_have_equal_keys(tmp_path):
    ours, image = processor(tmp_path), noise(48, 48)
    other = image.copy()
    other.putpixel((0, 0), (1, 2, 3))
    assert ours.patches(image).key == ours.patches(image.copy()).key != ours.patches(other).key
    assert len(ours.patches(image).key) == 64


def test_every_way_to_give_a_picture(tmp_path):
    image = noise(20, 10)
    png = encoded(image)
    path = tmp_path / "ä picture.png"
    path.write_bytes(png)
    uri = "data:image/png;base64," + base64.b64encode(png).decode()
    for source in (image, png, bytearray(png), path, str(path), path.as_uri(), uri):
        np.testing.assert_array_equal(np.asarray(open_image(source)), np.asarray(image))


def test_pictures_are_turned_upright():
    image = noise(20, 10)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    turned = open_image(encoded(image, exif=exif))
    assert turned.size == (10, 20)
    np.testing.assert_array_equal(np.asarray(turned), np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize(
    ("mode", "colour", "wanted"),
    [
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("LA", (40, 0), (255, 255, 255)),
        ("L", 40, (40, 40, 40)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 40 * 257, (40, 40, 40)),
        ("I;16B", 40 * 257, (40, 40, 40)),
        ("I", 65535, (255, 255, 255)),
        ("I", 40, (40, 40, 40)),
        ("F", 0.5, (128, 128, 128)),
        ("F", 200.0, (200, 200, 200)),
        ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
    ],
)
def test_colour_modes(mode, colour, wanted):
    image = open_image(Image.new(mode, (4, 4), colour))
    assert image.mode == "RGB" and image.getpixel((1, 1)) == wanted


def test_transparent_palette_is_white():
    image = Image.new("P", (4, 4), 3)
    image.putpalette([0] * 768)
    assert open_image(encoded(image, transparency=3)).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(encoded(image)).getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("http://example.org/a.png", "is a web address; nothing is fetched"),
        ("HTTPS://example.org/a.png", "is a web address; nothing is fetched"),
        ("nowhere.png", "nowhere.png is not a file; check the picture's path"),
        ("a\0b", "is not a file"),
        ("x" * 5000, "is not a file"),
        ("", "give a path, bytes"),
        (7, "a picture is 7; give a path, bytes, a data URI or a PIL.Image"),
        (b"hello", "the picture is not a picture; give a PNG"),
        (encoded(noise(40, 40))[:900], "the picture cannot be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a picture"),
        ("data:image/png,abc", "the data URI data:image/png,abc cannot be read"),
        ("data:image/png;base64,????", "the data URI .* cannot be read"),
        ("data:image/png;base64,aGk=", "the data URI is not a picture"),
    ],
)
def test_errors_are_one_line_and_name_the_fix(source, words):
    with pytest.raises(MediaError, match=words) as caught:
        open_image(source)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_folders_and_bombs(tmp_path):
    with pytest.raises(MediaError, match="is not a file"):
        open_image(tmp_path)
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(encoded(Image.new("1", (20000, 20000))))
    with pytest.raises(MediaError, match=r"bomb.png has too many pixels .* shrink it"):
        open_image(bomb)


def test_pictures_need_no_torch(tmp_path):
    small.save(tmp_path)
    code = (
        "import sys; sys.modules['torch'] = None; sys.path.insert(0, 'tests'); import small\n"
        "from pathlib import Path; from PIL import Image\n"
        "from dg_mlx.processor import Processor\n"
        f"ours = Processor(Path({str(tmp_path)!r}), small.config(small.tokenizer()))\n"
        "part = {'type': 'image', 'image': Image.new('RGB', (9, 9))}\n"
        "print(len(ours.encode([{'role': 'user', 'content': [part]}]).media.images))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "1", done.stderr
