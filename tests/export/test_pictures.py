"""Pictures of digits in many guises; a nearest-centroid or small linear classifier judges them as a
network would.
"""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from sklearn.svm import SVC

from mnist_ray import data
from mnist_ray.data import read_picture
from mnist_ray.errors import SettingsError
from mnist_ray.export.pictures import Preprocessor, preprocessing_graph
from tests.support.datasets import write_idx

Guise = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def rgba(grey: np.ndarray) -> np.ndarray:
    """float [h, w] in [0, 1] -> opaque uint8 [h, w, 4]."""
    values = np.clip(np.round(grey * 255), 0, 255).astype(np.uint8)
    return np.dstack([values, values, values, np.full_like(values, 255)])


def enlarged(
    image: np.ndarray, size: int, how: Image.Resampling = Image.Resampling.BICUBIC
) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((size, size), how)) / 255


def somewhere(
    image: np.ndarray, size: int, shape: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """The digit, size x size, at a random place on a black canvas."""
    canvas = np.zeros(shape)
    top, left = rng.integers(0, shape[0] - size + 1), rng.integers(0, shape[1] - size + 1)
    canvas[top : top + size, left : left + size] = enlarged(image, size)
    return canvas


def paper(
    ink: np.ndarray,
    rng: np.random.Generator,
    noise: float,
    contrast: float = 0.6,
    slope: float = 0.15,
) -> np.ndarray:
    """A photo of the ink on grey paper that is lit from one side and darker in the corners."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in ink.shape), indexing="ij")
    angle = rng.uniform(0, 2 * np.pi)
    light = 0.75 + slope * (np.cos(angle) * x + np.sin(angle) * y) - 0.05 * (x**2 + y**2)
    return light * (1 - contrast * ink) + rng.normal(0, noise, ink.shape)


def jpeg(grey: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(rgba(grey)[..., 0]).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)) / 255


def box(image: np.ndarray) -> np.ndarray:
    """The part of uint8 [h, w] that is not black."""
    rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


GUISES: dict[str, Guise] = {
    "inverted": lambda i, rng: 1 - i / 255,
    "enlarged": lambda i, rng: enlarged(i, 280),
    "pixels": lambda i, rng: 1 - enlarged(i, 280, Image.Resampling.NEAREST),
    "large canvas": lambda i, rng: somewhere(i, 300, (600, 400), rng),
    "small on white": lambda i, rng: 1 - somewhere(i, 40, (500, 700), rng),
    "paper": lambda i, rng: paper(somewhere(i, 200, (400, 500), rng), rng, 0.04),
    "faint": lambda i, rng: paper(somewhere(i, 200, (300, 300), rng), rng, 0.04, contrast=0.4),
    "little photo": lambda i, rng: paper(somewhere(i, 40, (60, 60), rng), rng, 0.03),
    "chalk board": lambda i, rng: 1 - paper(somewhere(i, 200, (300, 300), rng), rng, 0.04),
    "jpeg": lambda i, rng: jpeg(1 - somewhere(i, 200, (300, 300), rng), 50),
    "close crop": lambda i, rng: 1 - np.kron(np.pad(box(i), 1), np.ones((8, 8))) / 255,
}


@pytest.fixture(scope="module")
def preprocess() -> Preprocessor:
    return Preprocessor((28, 28), 1)


@pytest.fixture(scope="module")
def digits(preprocess: Preprocessor) -> np.ndarray:
    """uint8 [100, 28, 28] as the network sees them: fitted, as MNIST's are from the start."""
    images = data.load("digits", "test").images[:100, 0]
    return np.stack(
        [np.round(preprocess(rgba(i / 255))[0, 0] * 255).astype(np.uint8) for i in images]
    )


@pytest.fixture(scope="module")
def classify() -> Callable[[np.ndarray], np.ndarray]:
    """float [n, 28, 28] in [0, 1] -> classes, learnt from the digits' training part."""
    train = data.load("digits", "train")
    model = SVC(C=10, gamma=0.01).fit(
        train.images.reshape(len(train.images), -1) / 255, train.labels
    )
    return lambda images: model.predict(images.reshape(len(images), -1))


@pytest.mark.parametrize("guise", GUISES.values(), ids=list(GUISES))
def test_predictions_stay_the_same(
    guise: Guise,
    digits: np.ndarray,
    preprocess: Preprocessor,
    classify: Callable[[np.ndarray], np.ndarray],
) -> None:
    rng = np.random.default_rng(0)
    seen = np.stack([preprocess(rgba(guise(i, rng)))[0, 0] for i in digits])
    same = classify(seen) == classify(digits / 255)
    assert same.mean() >= 0.95


def specks(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The digit on a white sheet with three specks of dirt."""
    sheet = 1 - somewhere(image, 150, (400, 500), rng)
    for _ in range(3):
        y, x, r = *rng.integers(5, 395, 2), rng.integers(2, 5)
        sheet[y - r : y + r, x - r : x + r] = 0.1
    return sheet


def beside_a_table(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A photo of the digit on paper, with a dark strip of the table at one of its sides."""
    canvas = np.zeros((400, 500))
    top, left = rng.integers(120, 180), rng.integers(130, 200)
    canvas[top : top + 150, left : left + 150] = enlarged(image, 150)
    photo = paper(canvas, rng, 0.03)
    turned, width = np.rot90(photo, int(rng.integers(4))), rng.integers(30, 60)
    turned[:, :width] = 0.2 + rng.normal(0, 0.03, (len(turned), width))  # a view of the photo
    return photo


@pytest.mark.parametrize(("guise", "least"), [(specks, 0.97), (beside_a_table, 0.8)])
def test_dirt_and_a_table_are_ignored(
    guise: Guise,
    least: float,
    digits: np.ndarray,
    preprocess: Preprocessor,
    classify: Callable[[np.ndarray], np.ndarray],
) -> None:
    rng = np.random.default_rng(0)
    seen = np.stack([preprocess(rgba(guise(i, rng)))[0, 0] for i in digits[:40]])
    assert (classify(seen) == classify(digits[:40] / 255)).mean() >= least


def test_several_digits_are_told_apart(digits: np.ndarray, preprocess: Preprocessor) -> None:
    singles = [preprocess.looked_at(rgba(1 - enlarged(i, 150)))[1] for i in digits[:40]]
    assert sum(singles) <= 2
    pairs = [np.hstack([a, b]) for a, b in zip(digits[:30], digits[30:60], strict=True)]
    sheets = [1 - np.pad(np.kron(pair, np.ones((4, 4))), 40) / 255 for pair in pairs]
    assert sum(preprocess.looked_at(rgba(sheet))[1] for sheet in sheets) >= 27
    # As the data set has them, they are no photos: nothing is asked.
    assert not any(preprocess.looked_at(rgba(pair / 255))[1] for pair in pairs[:5])


def test_mnist_format_passes_unchanged(digits: np.ndarray, preprocess: Preprocessor) -> None:
    again = np.stack([preprocess(rgba(i / 255))[0, 0] for i in digits])
    assert np.abs(again - digits / 255).mean() < 0.005


@pytest.mark.skipif(
    not os.environ.get("MNIST_RAY_DATA"), reason="MNIST_RAY_DATA names no folder with MNIST"
)
def test_mnist_itself_passes_unchanged(preprocess: Preprocessor) -> None:
    images = data.load("mnist", "test").images[:1000, 0]
    difference = np.abs(
        np.stack([preprocess(rgba(i / 255))[0, 0] for i in images]) - images / 255
    ).mean((1, 2))
    assert difference.mean() < 0.002
    assert (difference < 5e-3).mean() > 0.97


def test_made_as_mnist_was(preprocess: Preprocessor) -> None:
    """A bar of 10 x 40 black pixels: 5 x 20 white ones, its centre of mass in the middle."""
    picture = np.ones((90, 70))
    picture[20:60, 40:50] = 0
    expected = np.zeros((28, 28))
    expected[4:24, 12:17] = 1
    seen = preprocess(rgba(picture))[0, 0]
    shifted = np.roll(
        expected, -1, 1
    )  # an odd width has no middle between pixels: 11 to 15 is as central as 12 to 16
    assert min(np.abs(seen - expected).max(), np.abs(seen - shifted).max()) < 0.02


def test_centre_of_mass_is_the_middle(digits: np.ndarray, preprocess: Preprocessor) -> None:
    index = np.arange(28)
    for i in digits[:30]:
        image = preprocess(rgba(1 - enlarged(i, 150)))[0, 0]
        assert image.max() == 1
        for axis in (0, 1):
            assert abs((image.sum(1 - axis) * index).sum() / image.sum() - 14) <= 0.5 + 1e-3


@pytest.mark.parametrize(
    "picture",
    [
        np.full((60, 80, 4), 255, np.uint8),
        np.zeros((60, 80, 4), np.uint8),
        rgba(np.zeros((1, 1))),
        rgba(np.full((30, 30), 0.4)),
        rgba(0.8 + np.random.default_rng(0).normal(0, 0.03, (300, 400))),
    ],
    ids=["white", "transparent", "one pixel", "grey", "blank paper"],
)
def test_nothing_drawn_gives_zeros(picture: np.ndarray, preprocess: Preprocessor) -> None:
    assert not preprocess(picture).any()


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 50), (50, 1), (2, 2), (3, 3000), (3000, 3), (129, 40), (2100, 900)]
)
def test_any_size(shape: tuple[int, int], preprocess: Preprocessor) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 4), dtype=np.uint8)
    image = preprocess(picture)
    assert image.shape == (1, 1, 28, 28)
    assert image.dtype == np.float32
    assert ((image >= 0) & (image <= 1 + 1e-6)).all()


@pytest.mark.parametrize("colour", [0, 255])
def test_strokes_on_transparent_ground(colour: int, preprocess: Preprocessor) -> None:
    drawn = rgba(np.ones((60, 60)))
    drawn[10:50, 28:33, :3] = 0
    clear = np.zeros((60, 60, 4), np.uint8)
    clear[..., :3] = colour
    clear[10:50, 28:33, 3] = 255
    np.testing.assert_allclose(preprocess(clear), preprocess(drawn), atol=1e-6)


def test_colour_pictures_are_resized_only() -> None:
    picture = np.zeros((64, 96, 4), np.uint8)
    picture[..., 3] = 255
    picture[:, 48:, 1] = 51
    picture[:32, :48, 3] = 0
    image = Preprocessor((32, 32), 3)(picture)
    assert image.shape == (1, 3, 32, 32)
    np.testing.assert_allclose(image[0, :, 25, 5], [0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(image[0, :, 25, 25], [0, 0.2, 0], atol=1e-6)
    np.testing.assert_allclose(image[0, :, 5, 5], [1, 1, 1], atol=1e-6)


def test_graph_is_plain_onnx() -> None:
    first, second = preprocessing_graph((28, 28), 1), preprocessing_graph((28, 28), 1)
    assert first == second
    proto = onnx.load_model_from_string(first)
    onnx.checker.check_model(proto)
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 20)]
    assert not proto.functions
    assert {node.domain for node in proto.graph.node} == {""}
    assert [i.name for i in proto.graph.input] == ["picture"]
    assert [o.name for o in proto.graph.output] == ["image", "several"]
    with pytest.raises(SettingsError, match="2 channels"):
        preprocessing_graph((28, 28), 2)


# ---- files


@pytest.mark.parametrize("padding", ["black", "white", "edge", "stretch"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(20, 31), (64, 9), (12, 12)])
def test_a_picture_becomes_what_the_training_saw(
    padding: str, channels: int, size: tuple[int, int]
) -> None:
    """The graph and the reader of one's own pictures agree, to the rounding of a byte."""
    random = np.random.default_rng(0)
    smooth = random.integers(0, 255, (6, 5, 4), np.uint8)
    picture = Image.fromarray(smooth, "RGBA").resize(size[::-1], Image.Resampling.BICUBIC)
    network = Preprocessor((12, 12), channels, padding)(np.asarray(picture))[0] * 255
    read = data.pictures.fitted(data.pictures.in_channels(picture, channels), (12, 12), padding)
    assert np.abs(network - read).max() < 3


def test_read_picture_turns_and_converts(tmp_path: Path) -> None:
    wide = np.zeros((4, 9, 3), np.uint8)
    wide[:, :3] = 200
    picture = Image.fromarray(wide)
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    picture.save(tmp_path / "turned.png", exif=exif)
    read = read_picture(str(tmp_path / "turned.png"))
    assert read.shape == (9, 4, 4)
    assert (read[:3, :, 0] == 200).all()
    assert (read[3:, :, 0] == 0).all()
    assert (read[..., 3] == 255).all()
    Image.fromarray(np.array([[0, 30000, 65535]], np.uint16)).save(tmp_path / "deep.png")
    assert read_picture(str(tmp_path / "deep.png"))[0, :, 0].tolist() == [0, 117, 255]


def test_read_picture_errors(tmp_path: Path) -> None:
    Image.new("1", (10_000, 5_001)).save(tmp_path / "large.png")
    Image.new("1", (14_000, 14_000)).save(tmp_path / "bomb.png")
    Image.new("L", (300, 300)).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:80])
    (tmp_path / "text.png").write_text("no picture")
    messages = {
        "none.png": "No such file",
        "text.png": "is not a picture",
        "half.png": "cannot be read",
        "large.png": "10000 x 5001 pixels; at most 50,000,000",
        "bomb.png": "at most 50,000,000",
        ".": "Is a directory",
    }
    for name, message in messages.items():
        with pytest.raises(SettingsError, match=message) as caught:
            read_picture(str(tmp_path / name))
        assert "\n" not in str(caught.value)
        assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("part", ["train", "test"])
def test_an_image_of_fashion_mnist_stays_as_it_is(part: str, tmp_path: Path) -> None:
    """Clothes fill all 28 rows. As a digit they would be fitted into 20 and moved."""
    write_idx(tmp_path, "fashion-mnist")  # noise over all pixels
    images = data.load("fashion-mnist", part, str(tmp_path))
    trouser = np.zeros((28, 28), np.uint8)
    trouser[:, 8:12] = trouser[:, 16:20] = trouser[:3, 8:20] = 200
    prepare = Preprocessor((28, 28), 1, images.padding)
    for image in (trouser, *images.images[:5, 0]):
        prepared = prepare(rgba(image / 255))[0, 0]
        assert np.abs(prepared - image / 255).max() < 0.01
