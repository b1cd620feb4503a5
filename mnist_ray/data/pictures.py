"""Picture files -> upright pictures of 8 bits a channel, and pictures -> images of one size."""

import io
import math
import os
import warnings
from collections.abc import Callable
from typing import Literal, NoReturn, TypeVar, get_args

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mnist_ray.errors import SettingsError, first_line
from mnist_ray.settings import text

T = TypeVar("T")
Padding = Literal["black", "white", "edge", "stretch"]
PADDINGS: tuple[str, ...] = get_args(Padding)
MAX_PIXELS = 50_000_000  # of a picture as it is unpacked; a larger JPEG is read at a fraction
MAX_SIDE = 65_500  # pixels; JPEG has no longer ones
FRACTION_OF = (
    2048  # pixels that the shorter side keeps at least, where a JPEG is read at a fraction
)
FORMATS = (
    "PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM",
)  # fmt: skip
"""None that starts another program, as EPS does."""
ENDINGS = text.ENDINGS  # of their files' names
GREY_MODES = ("1", "L", "LA", "La", "I", "F")
# Our own limit is below Pillow's. (A filter for a while would not be safe in threads.)
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # EXIF's tag, and its values that swap the sides
BITS_PER_SAMPLE = 0x0102  # TIFF's tag

Picture = str | bytes | np.ndarray
"""A file's path, a file's content, or uint8 [height, width] or [height, width, 3 or 4]."""


def opened(picture: Picture, name: str = "") -> Image.Image:
    """The first frame, upright as its EXIF orientation says, with 8 bits a channel.

    Args:
        picture: See Picture.
        name: In errors; a path names itself.

    Raises:
        SettingsError: The file is missing, is of no known format, is damaged, or has more than
            MAX_PIXELS.
    """
    if isinstance(picture, np.ndarray):
        header(picture, name)
        return Image.fromarray(picture)
    name = name or (picture if isinstance(picture, str) else "a picture")
    return _guarded(picture, name, in_8_bits)


def header(picture: Picture, name: str = "", most: int | None = None) -> tuple[int, int, bool]:
    """Height, width and whether it may be in colour, without decoding; raises as `opened`.

    Args:
        picture: See Picture.
        name: In errors; a path names itself.
        most: More pixels than these are refused, by the size that the file states. None: MAX_PIXELS
            of a JPEG as it would be read, at a fraction.
    """
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8:
            raise SettingsError(
                f"{name} is an array of {picture.dtype}; expected whole numbers from 0 to 255"
            )
        if not picture.size or not (picture.ndim == 2 or picture.shape[2:] in ((3,), (4,))):
            raise SettingsError(
                f"{name} is an array of {list(picture.shape)}; expected [height, width] or "
                "[height, width, 3 or 4]"
            )
        return picture.shape[0], picture.shape[1], picture.ndim == 3
    return _guarded(picture, name or str(picture)[:200], _header, most)


def _header(image: Image.Image) -> tuple[int, int, bool]:
    width, height = image.size
    grey = image.mode in GREY_MODES or image.mode.startswith("I;")
    # Pillow has turned a TIFF's sides already. A PNG's own method would decode the picture.
    if image.format != "TIFF" and Image.Image.getexif(image).get(ORIENTATION) in TURNED:
        height, width = width, height
    return height, width, not grey


def _guarded(
    picture: str | bytes,
    name: str,
    finish: Callable[[Image.Image], T],
    most: int | None = None,
) -> T:
    path = picture if isinstance(picture, str) else ""
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise SettingsError(f"{name} cannot be read: it is no regular file")
    try:
        file = io.BytesIO(picture) if isinstance(picture, bytes) else picture
        image = Image.open(file, formats=FORMATS)
        with image:
            # Before a fraction is asked for: a progressive JPEG takes the memory of the whole.
            if most is not None and image.width * image.height > most:
                refuse_size(*image.size, name, most)
            _check_size(image, name)
            return finish(image)
    except UnidentifiedImageError as error:
        raise SettingsError(
            f"{name} is not a picture; expected one of {', '.join(FORMATS)}"
        ) from error
    except Image.DecompressionBombError as error:
        raise SettingsError(
            f"{name}: the picture is too large; at most {most or MAX_PIXELS:,} pixels are allowed"
        ) from error
    except SettingsError:
        raise
    except Exception as error:  # a damaged file has Pillow raise anything: struct.error, TypeError
        raise SettingsError(
            f"{name} cannot be read: {getattr(error, 'strerror', None) or first_line(error)}"
        ) from error


def _check_size(image: Image.Image, name: str) -> None:
    """Has a JPEG (an MPO's first too) of too many pixels read at a half to an eighth of its sides.

    Raises:
        SettingsError: It is still too large, or is of another format.
    """
    width, height = image.size
    if width * height > MAX_PIXELS and image.format in ("JPEG", "MPO"):
        image.draft(image.mode, (FRACTION_OF, FRACTION_OF))
    if image.width * image.height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        refuse_size(width, height, name)


def refuse_size(width: int, height: int, name: str, most: int = MAX_PIXELS) -> NoReturn:
    """Raises SettingsError for a picture of too many pixels, or of none."""
    raise SettingsError(
        f"{name}: the picture has {width} x {height} pixels; at most {most:,} in all "
        f"and {MAX_SIDE:,} a side are allowed"
    )


def in_8_bits(file: Image.Image) -> Image.Image:
    """The picture upright, with 8 bits a channel. ValueError if the range of its pixels is open."""
    image: Image.Image = ImageOps.exif_transpose(file)
    image.load()
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range is not known")
    if image.mode == "I" and file.format == "TIFF":
        raise ValueError("its pixels are numbers of 32 bits, whose range is not known")
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip instead of scale
        bits = getattr(file, "tag_v2", {}).get(BITS_PER_SAMPLE)
        down = 4 if bits == (12,) else 8  # a TIFF of 12 bits is unpacked to 0..4095
        return Image.fromarray((np.asarray(image) >> down).clip(0, 255).astype(np.uint8))
    return image


def in_channels(image: Image.Image, channels: int) -> Image.Image:
    """The picture in grey (1) or RGB (3); where it is transparent it is white."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", image.size, (255, 255, 255))
        image.paste(rgba, mask=rgba.getchannel("A"))
    return image.convert("L" if channels == 1 else "RGB")


def fitted(image: Image.Image, size: tuple[int, int], padding: str) -> np.ndarray:
    """A picture of mode L or RGB as uint8 [C, *size].

    Its sides keep their ratio, and the rest is padded; with `stretch` it fills the whole.
    """
    height, width = image.height, image.width
    inner = size
    if padding != "stretch":
        scale = min(size[0] / height, size[1] / width)
        inner = max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
    if inner != (height, width):
        # Antialiased triangles: what ONNX's Resize does in `export.pictures`.
        image = image.resize((inner[1], inner[0]), Image.Resampling.BILINEAR)
    array = np.asarray(image)
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    if inner == size:
        return array
    before = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    around = [(0, 0)] + [(b, s - i - b) for b, s, i in zip(before, size, inner, strict=True)]
    if padding == "edge":
        return np.pad(array, around, mode="edge")
    return np.pad(array, around, constant_values=255 if padding == "white" else 0)


def read_picture(path: str | os.PathLike[str]) -> np.ndarray:
    """A picture file as uint8 [h, w, 4] (RGBA), turned as its EXIF orientation says.

    Raises:
        SettingsError: The file is missing, is of no known format, or has more than MAX_PIXELS.
    """
    return np.array(opened(os.fspath(path)).convert("RGBA"))


def as_rgba(
    picture: str | os.PathLike[str] | np.ndarray | Image.Image, image_shape: tuple[int, int, int]
) -> np.ndarray:
    """A picture in any of the forms that people have, as uint8 [h, w, 4].

    Args:
        picture: A file, a picture of Pillow's, or uint8 [h, w] or [h, w, 3 or 4].
        image_shape: The network's own, named in errors.

    Raises:
        SettingsError: The file cannot be read, or the array is no picture.
    """
    if isinstance(picture, str | os.PathLike):
        return read_picture(picture)
    if not isinstance(picture, np.ndarray | Image.Image):
        raise SettingsError(
            f"picture: a {type(picture).__name__}; expected a file's path, a picture of Pillow's "
            "or a NumPy array of uint8"
        )
    sides = picture.size if isinstance(picture, Image.Image) else picture.shape[1::-1]
    if len(sides) == 2 and (
        min(sides) == 0 or math.prod(sides) > MAX_PIXELS or max(sides) > MAX_SIDE
    ):
        refuse_size(*sides, "picture")
    if isinstance(picture, Image.Image):
        try:
            return np.array(in_8_bits(picture).convert("RGBA"))
        except (OSError, ValueError) as error:
            raise SettingsError(f"picture: {first_line(error)}") from error
    if picture.dtype != np.uint8:
        raise SettingsError(f"picture: an array of {picture.dtype}; expected uint8")
    try:
        if picture.ndim not in (2, 3) or not picture.size:  # as [5, 5, 0]
            raise ValueError("no picture")
        return np.array(Image.fromarray(picture).convert("RGBA"))
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"picture: an array of shape {picture.shape}; expected [height, width], "
            f"[height, width, 3 or 4] or {list(image_shape)}"
        ) from error
