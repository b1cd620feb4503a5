"""What `known` of picture.onnx is worth on MNIST: each kind judged by a gate that never saw it.

    MNIST_RAY_DATA=DIR python benchmarks/known.py     # 15 minutes on two cores
    # with clothes (more_data.py), and icons of a font: that of npm's @fortawesome/fontawesome-free
    ... benchmarks/known.py --fashion npz:clothes.npz --icons fa-solid-900.woff2

A classifier is trained on the training part. For every kind of foreign pictures a gate is trained
without that kind, and the thresholds are set on the validation images (other writers). The foreign
pictures are drawn by Pillow, by other code than a gate's own negatives, go through the preparation
of picture.onnx, and are judged together. The test images are looked at once, at the end.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from common import BenchmarkSettings, convnet, section, table
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps
from sklearn.datasets import load_sample_images

from mnist_ray import data
from mnist_ray.errors import SettingsError
from mnist_ray.export.pictures import Preprocessor
from mnist_ray.export.session import probabilities
from mnist_ray.export.write import logits_of
from mnist_ray.finetune_job import gate, negatives
from mnist_ray.finetune_job.calibration import temperature
from mnist_ray.settings import main
from mnist_ray.training.trainer import Trainer

# A kind of pictures: the kinds of negatives that a gate which judges it must not have seen.
LEFT_OUT = {
    "noise": ("noise", "blanks"),
    "blank": ("noise", "blanks"),
    "photos": (),
    "fashion": (),
    "icons": (),
    "scribbles": ("strokes",),
    "halves": ("halves", "pieces"),
    "pairs": ("pairs", "overlays", "crowds"),
    "turned": ("rotations",),
    "letters": (),
    "letters like digits": (),
}
LIKE_DIGITS = "OoQDIlijSsZzBbgqGT"
SHARES = (0.002, 0.005, 0.01)  # of the test images that are handed to a person
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSansMono",
    "STIXGeneral", "STIXGeneralItalic", "cmr10", "cmss10", "cmtt10",
)  # fmt: skip


@dataclass(frozen=True)
class KnownSettings(BenchmarkSettings):
    """Judge the gate leave-one-kind-out."""

    epochs: int = 2
    """Of the classifier."""
    pictures: int = 1000
    """Of each kind."""
    smoothing: float = 0.1
    """The classifier's label smoothing."""
    fashion: str = "fashion-mnist"
    """The data set of the kind fashion: npz:FILE of more_data.py's clothes is one."""
    icons: str | None = None
    """A font's file whose private characters are the kind icons: that of Font Awesome is one."""
    test: bool = False
    """Look at the test images too: once, when everything is settled."""


# ---- foreign pictures: uint8 [h, w, 4]


def rgba(picture: Image.Image) -> np.ndarray:
    return np.array(picture.convert("RGBA"))


def noise(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    size = int(random.integers(20, 120))
    grain = int(random.choice([1, 1, 2, 4]))
    grey = random.random() < 0.5
    shape = (size // grain + 1, size // grain + 1) + (() if grey else (3,))
    if random.random() < 0.5:
        pixels = random.integers(0, 256, shape)
    else:
        pixels = np.clip(random.normal(128, random.uniform(10, 80), shape), 0, 255)
    return rgba(Image.fromarray(pixels.astype(np.uint8)).resize((size, size), 0))


def blank(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    size = int(random.integers(20, 200))
    level = random.integers(0, 256)
    ramp = np.linspace(0, random.uniform(-80, 80), size)[None, :]
    pixels = np.clip(level + ramp + random.normal(0, random.choice([0, 0, 1, 2]), (size, size)),
                     0, 255)  # fmt: skip
    return rgba(Image.fromarray(pixels.astype(np.uint8)))


def photos(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    photo = load_sample_images().images[int(random.integers(2))]
    size = int(random.integers(40, 300))
    top, left = (int(random.integers(side - size)) for side in photo.shape[:2])
    return rgba(Image.fromarray(photo[top : top + size, left : left + size]))


def scribbles(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    picture = Image.new("L", (200, 200), 255)
    draw, width = ImageDraw.Draw(picture), int(random.integers(6, 20))
    place, way = random.uniform(40, 160, 2), random.uniform(0, 6.28)
    points = [tuple(place)]
    bend = random.normal(0, 0.3)
    for _ in range(int(random.integers(25, 90))):
        bend = 0.85 * bend + random.normal(0, 0.18)
        way += bend
        place = np.clip(place + 9 * np.array([np.cos(way), np.sin(way)]), 12, 188)
        points.append(tuple(place))
    draw.line(points, 0, width, "curve")
    return rgba(picture)


def large(image: np.ndarray, side: int = 140) -> Image.Image:
    return Image.fromarray(image[0]).resize((side, side), Image.Resampling.BICUBIC)


def halves(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    digit = np.array(large(images[random.integers(len(images))]))
    cut = int(random.integers(60, 80))
    which = random.integers(4)
    digit[tuple([slice(0, cut), slice(cut, None)][which % 2] if axis == which // 2 else slice(None)
                for axis in (0, 1))] = 0  # fmt: skip
    return rgba(ImageOps.invert(Image.fromarray(digit)))


def pairs(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    page = Image.new("L", (300, 160), 0)
    for left in (10, int(random.integers(95, 140))):
        digit = large(images[random.integers(len(images))])
        page.paste(digit, (left, int(random.integers(0, 20))), digit)
    return rgba(ImageOps.invert(page))


def turned(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    digit = large(images[random.integers(len(images))])
    return rgba(ImageOps.invert(digit.rotate(int(random.choice([90, 270])))))


def letters_of(alphabet: str) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"

    def draw(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
        font = ImageFont.truetype(folder / f"{random.choice(FONTS)}.ttf", 120)
        page = Image.new("L", (200, 200), 255)
        letter = alphabet[int(random.integers(len(alphabet)))]
        ImageDraw.Draw(page).text((100, 100), letter, 0, font, anchor="mm")
        return rgba(page)

    return draw


def pen(filter_: ImageFilter.Filter) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    """Digits whose bright lines a filter has made thinner or bolder."""

    def draw(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
        digit = large(images[random.integers(len(images))])
        return rgba(ImageOps.invert(digit.filter(filter_)))

    return draw


def icons_of(file: str) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    """SettingsError where it is no font that Pillow can read."""
    try:
        font = ImageFont.truetype(file, 120)
    except OSError as error:
        raise SettingsError(f"--icons: {file}: {error}") from error

    def page(code: int) -> Image.Image:
        page = Image.new("L", (240, 240), 255)
        ImageDraw.Draw(page).text((120, 120), chr(code), 0, font, anchor="mm")
        return page

    missing = page(0x10FFFF).tobytes()  # no character
    codes = [
        code
        for code in range(0xE000, 0xF900)  # for private use: letters and digits lie elsewhere
        if page(code).tobytes() != missing and page(code).getextrema()[0] == 0
    ]
    if not codes:
        raise SettingsError(f"--icons: {file} has no characters from U+E000 on")
    return lambda images, random: rgba(page(random.choice(codes)))


ALPHABET = "".join(chr(c) for c in (*range(65, 91), *range(97, 123)))
DRAWING: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "noise": noise,
    "blank": blank,
    "photos": photos,
    "scribbles": scribbles,
    "halves": halves,
    "pairs": pairs,
    "turned": turned,
    "letters": letters_of("".join(c for c in ALPHABET if c not in LIKE_DIGITS)),
    "letters like digits": letters_of(LIKE_DIGITS),
}

# These are digits: nothing of them should be declined. In pixels of the 140 that a digit has.
OTHER_PENS = {
    "the same digits, lines 1.2 pixels thinner": pen(ImageFilter.MinFilter(7)),
    "the same digits, lines 1.2 pixels bolder": pen(ImageFilter.MaxFilter(7)),
}


def prepared(pictures: Iterator[np.ndarray]) -> np.ndarray:
    """uint8 [n, 1, 28, 28]: as picture.onnx hands them to network and gate, to a byte."""
    prepare = Preprocessor((28, 28), 1)
    return np.concatenate([(prepare(p) * 255).round().astype(np.uint8) for p in pictures])


def foreign(settings: KnownSettings, images: np.ndarray) -> dict[str, np.ndarray]:
    """The pictures of each kind."""
    random = np.random.default_rng(7)
    drawing = DRAWING | ({"icons": icons_of(settings.icons)} if settings.icons else {})
    made = {
        kind: prepared(draw(images, random) for _ in range(settings.pictures))
        for kind, draw in drawing.items()
    }
    try:
        fashion = data.load(settings.fashion, "test", settings.data_dir).images
        of_all = fashion[:: max(1, len(fashion) // settings.pictures)][: settings.pictures]
        made["fashion"] = prepared(rgba(Image.fromarray(image[0])) for image in of_all)
    except SettingsError as error:
        print(f"without fashion pictures: {error}", flush=True)
    return {kind: made[kind] for kind in LEFT_OUT if kind in made}


# ---- judging


@dataclass(frozen=True)
class Classifier:
    """A network and the temperature of its validation images."""

    network: Any
    temperature: float

    def sure(self, images: np.ndarray) -> np.ndarray:
        """float64 [n]: the calibrated probability of its answer."""
        logits = logits_of(self.network, images).astype(np.float64)
        return probabilities(logits / self.temperature).max(1)


def classifier(settings: KnownSettings, split: data.Split) -> Classifier:
    hp = convnet(
        blocks=3, lr=0.1, optimizer="sgd", schedule="one_cycle", activation="gelu",
        label_smoothing=settings.smoothing, ema=0.99, weight_decay=5e-4,
    )  # fmt: skip
    trainer = Trainer(hp, epochs=settings.epochs, seed=0)
    arrays = (split.images.images, split.images.labels, split.train, split.val)
    tensors = [torch.from_numpy(np.array(array)) for array in arrays]
    for _ in range(settings.epochs):
        row = trainer.run_epoch(*tensors)
        print(f"classifier: epoch {row['epoch']}: {row['val_accuracy']:.4f}", flush=True)
    network = trainer.eval_model()
    logits = logits_of(network, split.images.images[split.val])
    return Classifier(network, temperature(logits, split.images.labels[split.val]))


def gate_without(kinds: Sequence[str], split: data.Split) -> gate.Gate:
    began = time.monotonic()
    used = [kind for name, kind in negatives.DRAWN.items() if name not in kinds]
    images = torch.from_numpy(np.array(split.images.images[split.train]))
    labels = torch.from_numpy(np.array(split.images.labels[split.train]))
    made = gate.trained(images, labels, 10, used)
    print(f"gate without {kinds or 'none'}: {time.monotonic() - began:.0f} s", flush=True)
    return made


def of_other_pens(
    settings: KnownSettings, own: Classifier, made: gate.Gate, at: gate.Thresholds,
    images: np.ndarray,
) -> str:  # fmt: skip
    """Digits drawn with other pens than the data set's: how many are declined."""
    random = np.random.default_rng(8)
    pictures = {
        kind: prepared(draw(images, random) for _ in range(settings.pictures))
        for kind, draw in OTHER_PENS.items()
    }
    pictures["scikit-learn's digits, of 8 × 8 pixels"] = data.load("digits", "train").images
    rows = []
    for kind, drawn in pictures.items():
        both, alone = declined(made, at, drawn, own.sure(drawn))
        rows.append([kind, len(drawn), f"{both:.1%}", f"{alone:.1%}"])
    return table(["digits of another pen", "n", "declined", "as foreign"], rows)


def declined(
    made: gate.Gate, at: gate.Thresholds, images: np.ndarray, sure: np.ndarray
) -> tuple[float, float]:
    """The shares that are declined, and that are declined as foreign; nothing drawn counts."""
    far = gate.scores_of(made, images) > at.foreign
    empty = images.reshape(len(images), -1).max(1) == 0
    return float((far | empty | (sure < at.unsure)).mean()), float((far | empty).mean())


def measure(settings: KnownSettings) -> None:
    """Every kind, then the test images."""
    split = data.load_split("mnist", settings.data_dir)
    images, labels = split.images.images, split.images.labels
    own = classifier(settings, split)
    made = foreign(settings, images[split.val])
    sure = {kind: own.sure(pictures) for kind, pictures in made.items()}
    of_val = own.sure(images[split.val])
    gates = {kinds: gate_without(kinds, split) for kinds in {(), *LEFT_OUT.values()}}
    rows = []
    for kind, pictures in made.items():
        row = [kind, len(pictures)]
        for kinds in (LEFT_OUT[kind], ()):
            judge = gates[kinds]
            at = gate.thresholds(gate.scores_of(judge, images[split.val]), of_val)
            both, alone = declined(judge, at, pictures, sure[kind])
            row += [f"{both:.1%}", f"{alone:.1%}"]
        row.append(f"{(sure[kind] < at.unsure).mean():.1%}")
        rows.append(row)
        print(row, flush=True)
    notes = [f"{sum(p.numel() for p in gates[()].parameters()):,} parameters of the gate."]
    parts = [("validation", images[split.val], labels[split.val])]
    if settings.test:
        test = data.load("mnist", "test", settings.data_dir)
        parts.append(("test", test.images, test.labels))
    for name, own_images, own_labels in parts:
        notes.append(of_own(name, own, gates[()], at, own_images, own_labels))
    notes.append(of_other_pens(settings, own, gates[()], at, images[split.val]))
    section(
        "None of these",
        ["kind", "n", "declined, gate that never saw it", "as foreign", "declined, shipped gate",
         "as foreign", "as unsure alone"],
        rows,
        n=f"one classifier of {settings.epochs} epochs, {len(gates)} gates",
        out=settings.out,
        notes=notes,
    )  # fmt: skip


def of_own(
    name: str, own: Classifier, made: gate.Gate, at: gate.Thresholds, images: np.ndarray,
    labels: np.ndarray,
) -> str:  # fmt: skip
    """The data set's own images: how many are declined, and errors left after a share is handed
    over, by three ways to rank them.
    """
    logits = logits_of(own.network, images).astype(np.float64)
    wrong = logits.argmax(1) != labels
    given = probabilities(logits / own.temperature)
    best = np.sort(logits, 1)
    centred = logits - logits.mean(1, keepdims=True)
    ranks = {
        "calibrated probability": given.max(1),
        "margin of the logits": best[:, -1] - best[:, -2],
        "normalised logit": centred.max(1) / np.linalg.norm(centred, axis=1),
    }
    both, alone = declined(made, at, images, given.max(1))
    n = len(images)
    rows = [
        [rank, *(int(wrong[np.argsort(values)[round(share * n) :]].sum()) for share in SHARES)]
        for rank, values in ranks.items()
    ]
    header = ["ranked by", *(f"{share:.1%} handed over" for share in SHARES)]
    return (
        f"{n:,} {name} images: {both:.2%} declined ({alone:.2%} as foreign), {int(wrong.sum())} "
        f"errors; errors left:\n\n{table(header, rows)}"
    )


if __name__ == "__main__":
    main(KnownSettings, measure)
