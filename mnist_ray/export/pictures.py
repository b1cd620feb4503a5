"""Pictures of people -> the pixels that a network takes, prepared as MNIST was.

LeCun et al. (1998): a bright digit on black, fitted into 20 x 20 pixels, antialiased, its centre of
mass in the middle of 28 x 28.

The definition is one ONNX graph, so that a web page (onnxruntime-web) and `predict` see the same
pixels. onnxscript translates the text of the functions below into that graph.
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.inliner import inline_local_functions
from onnxscript import script

from mnist_ray.errors import SettingsError
from mnist_ray.export.picture_parts import (
    FLOAT,
    INT64,
    UINT8,
    at_most,
    channels_of,
    colours,
    fitted_size,
    grey_on_its_edge,
    grey_on_one_colour,
    grey_stretched,
    on_its_edge,
    on_one_colour,
    op,
    over_white,
    resized,
    stretched,
)
from mnist_ray.export.picture_strokes import clear_in, foreign_in, several_in
from mnist_ray.export.session import runtime_session

COARSE = 128  # longest side of the picture in which the ink is looked for
SEVERAL = "several"  # the second output
# How far the window for the background reaches, at that size: further than half of any stroke.
REACH = 24  # the steps of smallest_beside are for this one


@script()
def median(values: FLOAT) -> FLOAT:
    """Upper median of a flat tensor."""
    largest, _ = op.TopK(values, op.Reshape(op.Size(values) / 2 + 1, [1]))
    return op.ReduceMin(largest, keepdims=0)


@script()
def border(image: FLOAT) -> FLOAT:
    """The outermost pixels of [1, 1, h, w], flat."""
    rows = op.Concat(image[:, :, 0, :], image[:, :, -1, :], axis=2)
    columns = op.Concat(image[:, :, :, 0], image[:, :, :, -1], axis=2)
    return op.Reshape(op.Concat(rows, columns, axis=2), [-1])


@script()
def luminance(rgba: FLOAT) -> FLOAT:
    """[1, 4, h, w] -> [1, 1, h, w]; 1 - alpha if only the transparency draws something."""
    weights = op.Constant(
        value_floats=[0.299, 0.587, 0.114]
    )  # ITU-R BT.601, as Pillow converts to "L"
    grey = op.ReduceSum(over_white(rgba) * op.Reshape(weights, [1, 3, 1, 1]), [1])
    return op.Where(op.ReduceMax(grey) - op.ReduceMin(grey) < 0.02, 1.0 - rgba[:, 3:4, :, :], grey)


@script()
def smallest_beside(image: FLOAT) -> FLOAT:
    """The minimum of 49 pixels around each one in its row of [1, 1, h, w].

    Each step doubles the pixels that it covers. MaxPool would compare all 49 for every pixel.
    """
    none = op.Constant(value_float=float("inf"))
    pads = op.Constant(value_ints=[0, 0, 0, REACH, 0, 0, 0, REACH])
    of_1 = op.Pad(image, pads, none)
    of_2 = op.Min(of_1[:, :, :, :-1], of_1[:, :, :, 1:])
    of_4 = op.Min(of_2[:, :, :, :-2], of_2[:, :, :, 2:])
    of_8 = op.Min(of_4[:, :, :, :-4], of_4[:, :, :, 4:])
    of_16 = op.Min(of_8[:, :, :, :-8], of_8[:, :, :, 8:])
    of_32 = op.Min(of_16[:, :, :, :-16], of_16[:, :, :, 16:])
    return op.Min(of_32[:, :, :, :-17], of_32[:, :, :, 17:])


@script()
def smallest_around(image: FLOAT) -> FLOAT:
    """The minimum in a square of 49 x 49 around each pixel."""
    down = smallest_beside(op.Transpose(image, perm=[0, 1, 3, 2]))
    return smallest_beside(op.Transpose(down, perm=[0, 1, 3, 2]))


@script()
def largest_near(image: FLOAT) -> FLOAT:
    """The maximum in a 9 x 9 square around each pixel of [1, 1, h, w]."""
    across = op.MaxPool(image, kernel_shape=[1, 9], pads=[0, 4, 0, 4])
    return op.MaxPool(across, kernel_shape=[9, 1], pads=[4, 0, 4, 0])


@script()
def mean_beside(image: FLOAT) -> FLOAT:
    """The mean of 49 pixels around each one in its row of [1, 1, h, w]."""
    place = op.Range(0, op.Squeeze(op.Shape(image, start=3)), 1)
    distance = op.Abs(op.Unsqueeze(place, [0]) - op.Unsqueeze(place, [1]))
    near = op.Cast(distance <= REACH, to=1)
    return op.MatMul(image, near) / op.ReduceSum(near, [0])


@script()
def background_of(image: FLOAT) -> FLOAT:
    """Morphological opening, which follows shadows and light fall-off but no stroke.

    The picture is continued beyond its border, or light that falls off there would remain. Not if
    strokes reach the border: they would grow into surfaces.
    """
    contrast = largest_near(image) + largest_near(-image)
    strokes_end = op.ReduceMax(border(contrast)) < 0.5 * op.ReduceMax(contrast, keepdims=0)
    more = op.Reshape(op.Where(strokes_end, REACH, 0), [1])
    both = op.Concat(more, more, axis=0)
    none = op.Constant(value_ints=[0, 0])
    smooth = op.AveragePool(image, kernel_shape=[5, 5], pads=[2, 2, 2, 2])
    padded = op.Pad(smooth, op.Concat(none, both, none, both, axis=0), mode="edge")
    opened = -smallest_around(-smallest_around(padded))
    return op.Slice(opened, both, both + op.Shape(image, start=2), [2, 3])


@script(default_opset=op)
def ink_of(image: FLOAT) -> FLOAT:
    """[1, 1, h, w], digit bright -> the same less its background and its border's median."""
    raised = image - background_of(image)
    return raised - median(border(raised))


@script()
def noise_of(ink: FLOAT) -> FLOAT:
    """The border's median absolute deviation: about two thirds of a standard deviation."""
    return median(op.Abs(border(ink)))


@script()
def calm_noise_of(ink: FLOAT) -> FLOAT:
    """The same where a table's edge lies along the border: the calmest quarter tells it.

    Of normal noise its largest deviation is 1 / 2.1 of the median one.
    """
    deviations = op.Abs(border(ink))
    more, _ = op.TopK(deviations, op.Reshape(3 * op.Size(deviations) / 4 + 1, [1]))
    return op.Min(median(deviations), 2.1 * op.ReduceMin(more, keepdims=0))


@script()
def extent(has_ink: FLOAT) -> INT64:
    """float32 [n], 1 for ink -> int64 [2]: its first place and the one after its last.

    [0, n] without ink.
    """
    n = op.Size(has_ink)
    place = op.Range(0, n, 1)
    inside = has_ink > 0.0
    first = op.ReduceMin(op.Where(inside, place, n), keepdims=1)
    end = op.ReduceMax(op.Where(inside, place + 1, 0), keepdims=1)
    nothing = first == n
    return op.Concat(op.Where(nothing, 0, first), op.Where(nothing, n, end), axis=0)


@script()
def box_of(clear: FLOAT) -> INT64:
    """[1, 1, h, w], 1 for ink -> the box around it: [[top, left], [bottom, right]].

    Without ink: the whole image.
    """
    rows = extent(op.Reshape(op.ReduceMax(clear, [3]), [-1]))
    columns = extent(op.Reshape(op.ReduceMax(clear, [2]), [-1]))
    return op.Transpose(op.Concat(op.Unsqueeze(rows, [0]), op.Unsqueeze(columns, [0]), axis=0))


@script()
def cropped(image: FLOAT, box: INT64) -> FLOAT:
    """The part of [1, c, h, w] within the box."""
    return op.Slice(image, box[0], box[1], [2, 3])


@script()
def bright_digit(grey: FLOAT) -> FLOAT:
    """The picture turned, if needed, so that its ink is brighter than its background.

    The background is the mean of the border's median, which is sure if the digit fills the picture,
    and the local mean, which is sure if the light falls off. The ninth power lets few strong
    differences (ink) outvote many weak ones (light and shadow).
    """
    coarse = at_most(grey, COARSE)
    down = mean_beside(op.Transpose(coarse, perm=[0, 1, 3, 2]))
    around = mean_beside(op.Transpose(down, perm=[0, 1, 3, 2]))
    difference = coarse - 0.5 * (around + median(border(coarse)))
    return grey * op.Sign(op.ReduceSum(op.Pow(difference, 9.0)))


@script()
def around_ink(coarse: FLOAT, foreign: FLOAT) -> FLOAT:
    """The box of the ink with a margin of a fifth, within the picture: shares of its sides."""
    ink = ink_of(coarse)
    noise = calm_noise_of(ink)
    box = op.Cast(box_of(clear_in(ink * (1.0 - foreign), 0.3, noise)), to=1)
    margin = 1.0 + 0.2 * op.ReduceMax(box[1] - box[0])
    size = op.Cast(op.Shape(coarse, start=2), to=1)
    start = op.Max(box[0] - margin, 0.0)
    end = op.Min(box[1] + margin, size)
    return op.Concat(op.Unsqueeze(start / size, [0]), op.Unsqueeze(end / size, [0]), axis=0)


@script()
def part_of(image: FLOAT, box: FLOAT) -> FLOAT:
    """The part of [1, 1, h, w] within a box that is given in shares of its sides."""
    size = op.Cast(op.Shape(image, start=2), to=1)
    start, end = op.Floor(box[0] * size + 1e-3), op.Ceil(box[1] * size - 1e-3)
    around = op.Concat(op.Unsqueeze(start, [0]), op.Unsqueeze(end, [0]), axis=0)
    return cropped(image, op.Cast(around, to=7))


@script()
def centre(profile: FLOAT) -> FLOAT:
    """Centre of mass of a flat tensor, as an index."""
    index = op.Cast(op.Range(0, op.Size(profile), 1), to=1)
    return op.ReduceSum(profile * index, keepdims=1) / op.Max(
        op.ReduceSum(profile, keepdims=1), 1e-6
    )


@script()
def centred(image: FLOAT, size: INT64) -> FLOAT:
    """[1, 1, h, w] on black of `size`, its centre of mass in the middle, to a pixel."""
    across = centre(op.Reshape(op.ReduceSum(image, [2]), [-1]))
    down = centre(op.Reshape(op.ReduceSum(image, [3]), [-1]))
    # A centre on the edge between two places goes to the upper left one, as in MNIST; a
    # ten-thousandth more is still the edge.
    shift = op.Ceil(op.Cast(size, to=1) / 2.0 - op.Concat(down, across, axis=0) - 0.5001)
    room = size - op.Shape(image, start=2)
    before = op.Min(op.Max(op.Cast(shift, to=7), 0), room)
    none = op.Constant(value_ints=[0, 0])
    return op.Pad(image, op.Concat(none, before, none, room - before, axis=0))


@script()
def digit(picture: UINT8, size: INT64, box: INT64) -> tuple[FLOAT, FLOAT]:
    """uint8 [h, w, 4] -> float32 [1, 1, *size] in [0, 1], the digit within box x box pixels.

    All zero if nothing is drawn. The second value is 1 if several digits are drawn, else 0.
    """
    bright = bright_digit(luminance(channels_of(picture)))
    coarse = at_most(bright, COARSE)
    ink = ink_of(coarse)
    # A picture no larger than the images themselves is taken as it is.
    longest = op.ReduceMax(op.Shape(bright, start=2), keepdims=0)
    photo = longest > 2 * op.ReduceMax(size, keepdims=0)
    foreign = foreign_in(ink, calm_noise_of(ink)) * op.Cast(photo, to=1)
    around = around_ink(coarse, foreign)
    ink = ink_of(at_most(part_of(bright, around), COARSE))
    noise = noise_of(ink)
    hidden = op.Resize(part_of(foreign, around), None, None, op.Shape(ink), mode="nearest")
    ink = ink * (1.0 - hidden)
    found = op.Cast(photo, to=1) * several_in(ink)
    floor = 3.0 * noise
    ink = cropped(ink, box_of(clear_in(ink, 0.1, noise)))
    ink = op.Relu(resized(ink, fitted_size(ink, box)) - floor)
    strongest, _ = op.TopK(op.Reshape(ink, [-1]), op.Reshape(op.Min(op.Size(ink), 10), [1]))
    full = op.ReduceMin(
        strongest
    )  # the tenth: the noise on top of a stroke must not make the rest of it pale
    prepared = centred(op.Where(full > 0.05, op.Min(ink / op.Max(full, 0.05), 1.0), 0.0), size)
    return prepared, found


# Padding -> what it does for one channel and for three; None as MNIST was prepared.
DEFINITIONS: dict[str | None, tuple[Any, Any]] = {
    None: (digit, colours),
    "stretch": (grey_stretched, stretched),
    "black": (grey_on_one_colour, on_one_colour),
    "white": (grey_on_one_colour, on_one_colour),
    "edge": (grey_on_its_edge, on_its_edge),
}


def preprocessing_graph(size: tuple[int, int], channels: int, padding: str | None = None) -> bytes:
    """An ONNX file from a picture to a network's input.

    `picture`: uint8 [height, width, 4] (RGBA) of any size. `image`: float32 [1, channels, *size] in
    [0, 1]. `several`, float32 []: 1 if several digits are drawn; only where a digit is looked for.
    Standard operators of opset 20 only.

    Args:
        size: Height and width of the image.
        channels: 1 or 3.
        padding: As `data.Images.padding`: what is around a picture of another shape. None: with
            one channel a digit, dark on light or light on dark, becomes bright on black as in
            MNIST; with three the picture is stretched.
    """
    if channels not in (1, 3):
        raise SettingsError(
            f"pictures: a model of {channels} channels is not supported; "
            "expected 1 (grey) or 3 (RGB)"
        )
    definition = DEFINITIONS[padding][channels == 3]
    proto = inline_local_functions(definition.to_model_proto())
    graph = proto.graph
    given = {"size": helper.make_tensor("size", TensorProto.INT64, [2], size)}
    if padding in ("black", "white"):
        given["value"] = helper.make_tensor(
            "value", TensorProto.FLOAT, [], [float(padding == "white")]
        )
    if definition is digit:
        given["box"] = helper.make_tensor(
            "box", TensorProto.INT64, [], [round(min(size) * 20 / 28)]
        )
    del graph.input[:]
    graph.input.append(
        helper.make_tensor_value_info("picture", TensorProto.UINT8, ["height", "width", 4])
    )
    graph.initializer.extend(given.values())
    outputs = {"image": [1, channels, *size], SEVERAL: []}
    for output, (name, shape) in zip(graph.output, outputs.items(), strict=False):
        graph.node.append(helper.make_node("Identity", [output.name], [name]))
        output.CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    for opset in [opset for opset in proto.opset_import if opset.domain]:
        proto.opset_import.remove(opset)  # onnxscript's name for the functions that are inlined now
    proto.producer_name, proto.producer_version = "mnist_ray", ""
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString(deterministic=True))


class Preprocessor:
    """The graph in onnxruntime."""

    def __init__(self, size: tuple[int, int], channels: int, padding: str | None = None) -> None:
        graph = preprocessing_graph(size, channels, padding)
        self._session = runtime_session(graph, "the preparation", threads=1)

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """uint8 [h, w, 4] -> float32 [1, channels, *size] in [0, 1]."""
        return self.looked_at(picture)[0]

    def looked_at(self, picture: np.ndarray) -> tuple[np.ndarray, bool]:
        """The same, and whether several digits are drawn."""
        image, *several = self._session.run(None, {"picture": picture})
        return image, bool(several and several[0])
