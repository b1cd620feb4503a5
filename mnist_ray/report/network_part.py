"""The published network: its layers and hyperparameters, and its first layer's filters."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor, nn

from mnist_ray import data
from mnist_ray.errors import SettingsError
from mnist_ray.export.write import rebuild
from mnist_ray.report.page import Picture, Table, count, picture, render
from mnist_ray.report.read import RunData
from mnist_ray.run import layout

MOST_MAPS = 64  # filters and activation maps
USUAL = {  # of a layer's settings: the same in every network here
    "eps=1e-05", "momentum=0.1", "affine=True", "bias=True", "track_running_stats=True",
    "inplace=True", "inplace=False", "dilation=1", "ceil_mode=False", "stride=(1, 1)",
    "start_dim=1", "end_dim=-1", "padding=0", "approximate='none'",
}  # fmt: skip
SHAPE = ("mean", "std", "in_channels", "image_size", "classes")  # of the data set


def network_part(run: RunData, test: data.Images | None) -> Markup:
    """Layers, hyperparameters and first layer.

    Args:
        run: It has a model.
        test: The test images, whose first one passes through the network; None: a blank image.
    """
    assert run.manifest is not None
    try:
        network, hp = rebuild(run.onnx, run.storage.join(layout.MODEL))
    except SettingsError as error:
        return Markup("<p>The layers are not shown: {}.</p>").format(str(error))
    shape = (hp["in_channels"], *hp["image_size"])
    image = np.zeros((1, *shape), np.uint8) if test is None else test.images[:1]
    passed = layers(network, torch.from_numpy(image.astype(np.float32) / 255))
    own = [(k, f"{v:.6g}" if isinstance(v, float) else str(v)) for k, v in hp.items()]
    return render(
        "network.html",
        m=run.manifest,
        shape=shape,
        layers=_layer_table(passed),
        hyperparameters=Table(
            "Hyperparameters", ("name", "value"), [pair for pair in own if pair[0] not in SHAPE]
        ),
        pictures=list(_first_layer(passed, test)),
    )


def layers(network: nn.Module, image: Tensor) -> list[tuple[str, nn.Module, Tensor]]:
    """Name, module and output of every module without children, in the order of the forward pass.

    Args:
        network: In evaluation mode.
        image: float32 [1, C, H, W].
    """
    seen: list[tuple[str, nn.Module, Tensor]] = []

    def note(name: str) -> Any:
        # A copy: the next activation may work in place.
        return lambda module, _, output: seen.append((name, module, output.detach().clone()))

    leaves = [(name, m) for name, m in network.named_modules() if not list(m.children())]
    hooks = [module.register_forward_hook(note(name)) for name, module in leaves]
    try:
        with torch.inference_mode():
            network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _layer_table(passed: list[tuple[str, nn.Module, Tensor]]) -> Table:
    rows = []
    for _, module, output in passed:
        if not isinstance(module, nn.Identity):
            size = "\u00a0×\u00a0".join(map(str, output.shape[1:]))
            own = count(sum(p.numel() for p in module.parameters()))
            rows.append((type(module).__name__, _settings(module), size, own))
    header = ("layer", "settings", "output", "parameters")
    return Table("Architecture", header, rows, whole=True)


def _settings(module: nn.Module) -> str:
    """The module's own description, shortened."""
    text = re.sub(r"\d+\.\d{6,}", lambda number: f"{float(number[0]):.6g}", module.extra_repr())
    text = re.sub(r"kernel_size=\((\d+), (\d+)\)", r"\1×\2", text)
    text = re.sub(r"(in|out)_features=", "", text)
    return ", ".join(part for part in re.split(r", (?![^(]*\))", text) if part not in USUAL)


# ---- pictures


def _first_layer(
    passed: list[tuple[str, nn.Module, Tensor]], test: data.Images | None
) -> Iterator[tuple[Picture, str]]:
    """The image, the filters of the first layer with weights, and its activations; captions."""
    kinds = (nn.Conv2d, nn.Linear)
    at = next((i for i, (_, module, _) in enumerate(passed) if isinstance(module, kinds)), None)
    if at is None:
        return
    module = passed[at][1]
    assert isinstance(module, kinds)
    weights = module.weight.detach().numpy()
    if isinstance(module, nn.Linear):
        shape = passed[0][2].shape[1:]
        if weights.shape[1] != np.prod(shape):
            return
        weights = weights.reshape(-1, *shape)
    outputs = (
        output
        for _, module, output in passed[at:]
        if type(module).__module__ == "torch.nn.modules.activation"
    )
    after = next(outputs, None)
    maps = test is not None and after is not None and after.dim() == 4
    if test is not None and maps:
        yield picture(as_pixels(test.images[0]), "the image", 112, 112), "Test image 0."
    filters, colours = _filters(weights)
    sheet = _mosaic(filters, f"{len(filters)} filters of the first layer")
    yield sheet, f"{_some(len(filters), len(weights))} filters, {colours}."
    if after is not None and maps:
        values = after[0].numpy()
        low, high = values.min(), values.max()
        grey = (255 * (values[:MOST_MAPS] - low) / ((high - low) or 1)).astype(np.uint8)
        yield (
            _mosaic(list(grey), f"{len(grey)} activation maps"),
            f"{_some(len(grey), len(values))} maps after the first activation, "
            f"black {low:.2g} to white {high:.2g}.",
        )


def _filters(weights: np.ndarray) -> tuple[list[np.ndarray], str]:
    """Weights float32 [n, C, H, W] as pictures, and the meaning of their colours."""
    scaled = weights[:MOST_MAPS] / (np.abs(weights).max() or 1.0)
    channels = weights.shape[1]
    if channels == 3:
        coloured = (127.5 + 127.5 * scaled.transpose(0, 2, 3, 1)).astype(np.uint8)
        return list(coloured), "grey is 0"
    which = "" if channels == 1 else "; the first channel"
    return [_signed(w[0]) for w in scaled], f"blue below 0, orange above, white 0{which}"


def as_pixels(image: np.ndarray) -> np.ndarray:
    """Uint8 [C, H, W] as a picture: [H, W, 3] of three channels, else the first as [H, W]."""
    return image.transpose(1, 2, 0) if len(image) == 3 else image[0]


def _some(shown: int, total: int) -> str:
    return f"All {total}" if shown == total else f"The first {shown} of {total}"


def _signed(values: np.ndarray) -> np.ndarray:
    """[-1, 1] as uint8 [H, W, 3]: blue, white at 0, orange."""
    white, blue, orange = np.array([(255, 255, 255), (33, 90, 190), (214, 96, 20)], np.float64)
    share = np.abs(values)[..., None]
    colour = np.where(values[..., None] < 0, blue, orange)
    return np.asarray(white * (1 - share) + colour * share, np.uint8)


def _mosaic(tiles: list[np.ndarray], alt: str) -> Picture:
    """Pictures of one size in rows of eight, enlarged to about 40 pixels each."""
    pictures = [t if t.ndim == 3 else np.repeat(t[..., None], 3, 2) for t in tiles]
    height, width = pictures[0].shape[:2]
    scale = max(1, round(40 / max(height, width)))
    columns = min(8, len(pictures))
    rows = -(-len(pictures) // columns)
    gap = max(1, round(3 / scale)) if scale < 4 else 1
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 128, np.uint8)
    for i, tile in enumerate(pictures):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[y : y + height, x : x + width] = tile
    return picture(sheet, alt, sheet.shape[1] * scale, sheet.shape[0] * scale)
