"""Augmentation: how far each kind moves an image, that a batch is changed at once and by torch's
seed, and what it costs.
"""

import math

import pytest
import torch

from mnist_ray import hyperparameters
from mnist_ray.errors import SettingsError
from mnist_ray.training import augment
from mnist_ray.training.trainer import Trainer

HP = {
    "model": "mlp",
    "in_channels": 1,
    "image_size": [12, 10],
    "classes": 2,
    "mean": [0.5],
    "std": [0.5],
    "units": [8],
    "dropouts": [0.0],
    "batch_size": 16,
    "optimizer": "sgd",
    "lr": 0.05,
}
ALPHA, SIGMA = (option.default for option in hyperparameters.AUGMENTATIONS["elastic"])


def change_of(text: str) -> augment.Change:
    change = augment.change_of(text)
    assert change is not None
    return change


def spots(n: int, height: int, width: int, y: int, x: int, channels: int = 1) -> torch.Tensor:
    """n images that are black but for one pixel."""
    images = torch.zeros(n, channels, height, width, dtype=torch.uint8)
    images[:, :, y, x] = 200
    return images


def centres(images: torch.Tensor) -> torch.Tensor:
    """float [n, 2]: the centre of mass (y, x) of each image."""
    mass = images.float().sum(1)
    weight = mass.sum((1, 2))
    y = (mass.sum(2) * torch.arange(mass.shape[1])).sum(1) / weight
    x = (mass.sum(1) * torch.arange(mass.shape[2])).sum(1) / weight
    return torch.stack([y, x], 1)


@pytest.mark.parametrize("name", augment.AUGMENTATIONS)
def test_shape_range_and_seed(name: str) -> None:
    images = torch.randint(0, 256, (40, 3, 14, 11), dtype=torch.uint8)
    before = images.clone()
    change = change_of(name)
    torch.manual_seed(5)
    first = change(images)
    torch.manual_seed(5)
    assert torch.equal(change(images), first)
    assert not torch.equal(change(images), first)
    assert first.shape == images.shape
    assert first.min() >= 0
    assert first.max() <= 255
    assert torch.equal(images, before)
    # Each image is changed in its own way, all its channels alike.
    same = spots(40, 14, 11, 7, 5, channels=3)
    changed = change(same)
    assert len({tuple(image.flatten().tolist()) for image in changed}) > 5
    assert torch.equal(changed[:, 0], changed[:, 2])


def test_shift_reaches_two_pixels_each_way_and_no_further() -> None:
    moved = (
        (centres(change_of("shift")(spots(2000, 12, 10, 6, 4))) - torch.tensor([6, 4]))
        .round()
        .int()
    )
    assert set(map(tuple, moved.tolist())) == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}
    assert change_of("shift")(spots(1, 12, 10, 6, 4)).dtype == torch.uint8


def test_crop_flip_reaches_four_pixels_and_mirrors_half() -> None:
    images = spots(4000, 12, 12, 6, 5)
    images[:, :, 6, 6] = 100  # to the right of the bright pixel, unless mirrored
    changed = change_of("crop-flip")(images).flatten(1)
    bright, dim = (changed == 200).float().argmax(1), (changed == 100).float().argmax(1)
    mirrored = dim < bright
    assert 0.45 < mirrored.float().mean() < 0.55
    ways = {(i // 12 - 6, i % 12 - 5) for i in bright[~mirrored].tolist()}
    assert ways == {(y, x) for y in range(-4, 5) for x in range(-4, 5)}


@pytest.mark.parametrize(("height", "width"), [(41, 41), (61, 41)])
def test_affine_turns_scales_and_shifts_within_its_bounds(height: int, width: int) -> None:
    y, x, n = height // 2, width // 2, 3000
    torch.manual_seed(1)
    middle = centres(change_of("affine")(spots(n, height, width, y, x)))
    torch.manual_seed(1)
    out = centres(change_of("affine")(spots(n, height, width, y, x + 15)))  # 15 pixels to the right
    assert (middle - torch.tensor([y, x])).abs().max() < 2 * 1.1 + 0.6
    assert (middle - torch.tensor([y, x])).abs().max() > 1.8
    arm = out - middle
    length, angle = arm.norm(dim=1) / 15, torch.rad2deg(torch.atan2(arm[:, 0], arm[:, 1]))
    assert 1.05 < length.max() < 1.16
    assert 0.84 < length.min() < 0.95
    assert 9 < angle.max() < 13  # a pixel's centre is known to half a pixel: 2 degrees on this arm
    assert -13 < angle.min() < -9


def test_elastic_is_smooth_and_about_a_pixel() -> None:
    images = torch.zeros(500, 1, 28, 28, dtype=torch.uint8)
    field = augment._displacements(images, ALPHA, SIGMA) * 14  # in pixels
    middle = field[:, 14, 14]
    # Smoothing by a Gaussian divides the noise's deviation of 1/sqrt(3) by 2 sqrt(pi) sigma.
    expected = ALPHA / math.sqrt(3) / (2 * math.sqrt(math.pi) * SIGMA)
    assert middle.std() == pytest.approx(expected, rel=0.1)
    step = (field[:, :, 1:] - field[:, :, :-1]).abs().mean()
    assert step < 0.25 * field.abs().mean()


def test_displacements_are_what_they_were_to_the_bit() -> None:
    images = torch.zeros(50, 1, 14, 11, dtype=torch.uint8)
    torch.manual_seed(3)
    noise = 2 * torch.rand(50, 2, 14, 11) - 1
    smooth = augment._gaussian(14, SIGMA, images.device) @ noise
    smooth = smooth @ augment._gaussian(11, SIGMA, images.device)
    former = ALPHA * smooth.permute(0, 2, 3, 1) * torch.tensor([2 / 11, 2 / 14])
    torch.manual_seed(3)
    assert torch.equal(augment._displacements(images, ALPHA, SIGMA), former)


@pytest.mark.parametrize("name", augment.AUGMENTATIONS)
def test_nothing_is_copied_from_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA graph refuses a tensor that is made of Python's numbers."""

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a copy from the CPU")

    change = change_of(name)
    for function in ("tensor", "as_tensor", "from_numpy"):
        monkeypatch.setattr(torch, function, refused)
    assert change(torch.zeros(9, 1, 14, 11, dtype=torch.uint8)).shape == (9, 1, 14, 11)


def test_elastic_keeps_what_is_even() -> None:
    images = torch.full((20, 1, 28, 28), 100, dtype=torch.uint8)
    inner = change_of("elastic")(images)[:, :, 8:-8, 8:-8]
    assert torch.allclose(inner, torch.tensor(100.0), atol=1e-2)


@pytest.mark.parametrize(
    ("text", "most"), [("affine:degrees=0,scale=0,shift=4", 4.6), ("affine:shift=0", 0.6)]
)
def test_strengths_are_options(text: str, most: float) -> None:
    moved = centres(change_of(text)(spots(2000, 41, 41, 20, 20))) - 20
    assert most - 1.1 < moved.abs().max() < most + 0.1


@pytest.mark.parametrize("name", augment.AUGMENTATIONS)
def test_defaults_written_out_are_the_defaults(name: str) -> None:
    options = hyperparameters.AUGMENTATIONS[name]
    text = f"{name}:" + ",".join(f"{option.name}={option.default}" for option in options)
    images = torch.randint(0, 256, (20, 3, 14, 11), dtype=torch.uint8)
    found = []
    for each in (name, text):
        torch.manual_seed(2)
        found.append(change_of(each)(images))
    assert torch.equal(*found)


def test_elastic_takes_alpha_and_sigma() -> None:
    images = torch.randint(0, 256, (20, 1, 28, 28), dtype=torch.uint8)
    inner = change_of("elastic:alpha=0,sigma=5")(images)
    assert torch.allclose(inner, images.float(), atol=1e-3)
    assert not torch.allclose(change_of("elastic:alpha=30,sigma=5")(images), images.float())


OWN = "tests.programs.own_augmentation"


def test_torchvisions_transforms_can_be_plugged_in() -> None:
    images = torch.randint(0, 256, (50, 3, 14, 11), dtype=torch.uint8)
    change = change_of(f"{OWN}:turned")
    torch.manual_seed(5)
    first = change(images)
    torch.manual_seed(5)
    assert torch.equal(change(images), first)
    assert first.shape == images.shape
    assert (first != images).flatten(1).any(1).float().mean() > 0.5
    augment.check(f"{OWN}:turned:degrees=90", images.numpy())
    augment.check(f"{OWN}:smooth", torch.full_like(images, 255).numpy())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("none_such:f", "'none_such:f' cannot be imported"),
        (f"{OWN}:NUMBER", "is of type int; expected a function of a batch"),
        (f"{OWN}:turned:speed=3", "has no option 'speed'; it has degrees"),
        (f"{OWN}:turned:degrees=fast", "degrees='fast' is not allowed"),
        (f"{OWN}:fails", "fails failed: .*ValueError: out of luck"),
        (f"{OWN}:leaves", r"leaves failed: .*the code called sys.exit\('no library'\)"),
        (f"{OWN}:cropped", r"returns \(9, 3, 13, 11\); expected a tensor \(9, 3, 14, 11\)"),
        (f"{OWN}:listed", "returns list; expected a tensor"),
        (f"{OWN}:scaled", "returns values up to 1; expected pixels from 0 to 255"),
        (f"{OWN}:whole", "returns torch.int64 values"),
        (f"{OWN}:lost", "values from nan to nan; expected uint8 or finite floats from 0 to 255"),
        (f"{OWN}:normalised", r"returns torch.float32 values from -0\.42\d+ to 2\.82\d+; expected"),
        (f"{OWN}:brighter", r"returns torch.float32 values from 0 to 331\.5; expected"),
    ],
)
def test_a_wrong_function_of_ones_own_is_one_line(text: str, message: str) -> None:
    images = torch.full((9, 3, 14, 11), 255, dtype=torch.uint8).numpy()
    images[:, :, :5] = 0
    with pytest.raises(SettingsError, match=f"^--augment: .*{message}") as error:
        augment.check(text, images)
    assert "\n" not in str(error.value)


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randint(0, 256, (100, 1, 12, 10), dtype=torch.uint8)
    return images, (images.float().mean((1, 2, 3)) > 127).long()


@pytest.mark.parametrize("name", augment.AUGMENTATIONS)
def test_training_goes_on_to_the_bit(data: tuple, name: str) -> None:
    hp = {**HP, "augment": name}
    whole = Trainer(hp, epochs=2, seed=3, precision="fp32")
    for _ in range(2):
        whole.train_epoch(*data)
    first = Trainer(hp, epochs=2, seed=3, precision="fp32")
    first.train_epoch(*data)
    second = Trainer(hp, epochs=2, seed=3, precision="fp32")
    second.load_state(first.state_bytes({}), "x")
    second.train_epoch(*data)
    assert second.weights_bytes({}) == whole.weights_bytes({})
    plain = Trainer(HP, epochs=2, seed=3, precision="fp32")
    for _ in range(2):
        plain.train_epoch(*data)
    assert not torch.equal(plain.weights()["2.weight"], whole.weights()["2.weight"])


def test_none_is_no_augmentation(data: tuple) -> None:
    weights = []
    for hp in (HP, {**HP, "augment": "none"}):
        trainer = Trainer(hp, epochs=1, seed=3, precision="fp32")
        trainer.train_epoch(*data)
        weights.append(trainer.weights())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_evaluation_is_on_the_images_as_they_are(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    index = torch.arange(100)
    losses = [
        Trainer(hp, epochs=1, seed=3, precision="fp32").evaluate(*data, index)
        for hp in (HP, {**HP, "augment": "elastic"})
    ]
    assert losses[0] == losses[1]
