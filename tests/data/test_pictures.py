"""Pictures of every format, damaged ones too: read, or named in one line."""

import io
import random
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mnist_ray.data import pictures
from mnist_ray.data.pictures import FORMATS, header, opened
from mnist_ray.errors import SettingsError

FEW, MANY = 60, 3000  # damaged files of a format


def whole(kind: str) -> bytes:
    """A picture with EXIF data, a palette or several frames where the format has them."""
    file, pixels = io.BytesIO(), np.random.default_rng(0).integers(0, 255, (24, 20, 3), np.uint8)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112], exif[0x010F], exif[0x829A] = 6, "somebody", 0.5  # turned; maker; exposure
    options: dict[str, Any] = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}
    if kind == "GIF":
        image = image.quantize(16)
        options = {"save_all": True, "append_images": [image.rotate(90)], "transparency": 3}
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "TIFF"])
def test_sides_are_those_of_the_turned_picture(kind: str) -> None:
    """A phone's picture, lying on its side; PNG without decoding it."""
    file, image = io.BytesIO(), Image.new("RGB", (30, 10), "red")
    exif = image.getexif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [image]} if kind == "MPO" else {}
    image.save(file, kind, exif=exif.tobytes(), **frames)
    content = file.getvalue()
    with Image.open(io.BytesIO(content)) as found:
        assert found.format == kind
    assert header(content) == (30, 10, True)
    assert opened(content).size == (10, 30)
    if kind == "PNG":
        assert header(content[:-30]) == (30, 10, True)


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_a_large_photo_of_two_frames_is_read_at_a_fraction_too(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 50_000)
    monkeypatch.setattr(pictures, "FRACTION_OF", 100)
    file, image = io.BytesIO(), Image.new("RGB", (400, 240), (200, 100, 50))
    frames = {"save_all": True, "append_images": [image]} if kind == "MPO" else {}
    image.save(file, kind, **frames)
    found = opened(file.getvalue())
    assert found.size == (200, 120)
    assert np.abs(np.asarray(found).astype(int) - (200, 100, 50)).max() < 5


def test_a_grey_tiff_of_12_bits_is_as_bright_as_it_is() -> None:
    """Pillow reads such files and writes none: 2 rows of 4 pixels, 6 bytes each."""
    values = [[0, 4095, 2048, 255], [16, 15, 1024, 4095]]
    bits = "".join(f"{value:012b}" for row in values for value in row)
    pixels = int(bits, 2).to_bytes(12, "big")
    tags = {256: 4, 257: 2, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 2, 279: 12}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    table = struct.pack("<H", len(tags)) + entries + bytes(4)
    found = opened(struct.pack("<2sHI", b"II", 42, 20) + pixels + table)
    assert np.asarray(found).tolist() == [[0, 255, 128, 15], [1, 0, 64, 255]]


def damaged(content: bytes, rng: random.Random) -> bytes:
    """With bytes changed, taken out or doubled, mostly in the first 300, where headers are."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(min(len(data), rng.choice((40, 300, len(data)))))
        kind = rng.random()
        if kind < 0.6:
            data[at] = rng.choice((0, 1, 255, 127, rng.randrange(256)))
        elif kind < 0.8:
            data[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"))
        elif kind < 0.9:
            del data[at : at + rng.randint(1, 30)]
        else:
            data[at:at] = data[at : at + 20]
    return bytes(data)


@pytest.mark.parametrize("number", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_picture_is_one_line(kind: str, number: int) -> None:
    content, rng = whole(kind), random.Random(kind)
    assert header(content) in ((20, 24, True), (24, 20, True))
    read = 0
    for _ in range(number):
        file = damaged(content, rng)
        for look in (header, opened):
            try:
                look(file, "a picture")
                read += 1
            except SettingsError as error:
                assert "\n" not in str(error)
    assert read
