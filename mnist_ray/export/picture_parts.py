"""Parts of the preparation graph that treat any picture alike: sizes, colours, padding.

onnxscript translates the text of these functions into ONNX (see `pictures`).
"""

from typing import TYPE_CHECKING, Any, TypeAlias

from onnxscript import opset20, script

if TYPE_CHECKING:
    FLOAT: TypeAlias = Any  # the arithmetic below is ONNX's, not Python's
    INT64: TypeAlias = Any
    UINT8: TypeAlias = Any
else:
    from onnxscript import FLOAT, INT64, UINT8

op: Any = opset20
LARGEST = 2048  # longest side of the picture that is worked on


@script()
def fitted_size(image: FLOAT, longest: INT64) -> INT64:
    """[1, 1, h, w] -> the size [2] of that shape with `longest` as its longer side."""
    size = op.Cast(op.Shape(image, start=2), to=1)
    scale = op.Cast(longest, to=1) / op.ReduceMax(size)
    return op.Cast(op.Max(op.Floor(size * scale + 0.5), 1.0), to=7)


@script()
def resized(image: FLOAT, size: INT64) -> FLOAT:
    """[1, c, h, w] -> [1, c, *size]; a new pixel is the weighted mean of those it covers."""
    channels = op.Shape(image, start=0, end=2)
    return op.Resize(
        image, None, None, op.Concat(channels, size, axis=0), mode="linear", antialias=1
    )


@script()
def at_most(image: FLOAT, longest: INT64) -> FLOAT:
    """The image, made smaller if a side is longer than `longest`."""
    size = op.Shape(image, start=2)
    return resized(image, op.Where(op.ReduceMax(size) > longest, fitted_size(image, longest), size))


@script()
def channels_of(picture: UINT8) -> FLOAT:
    """uint8 [h, w, 4] -> float32 [1, 4, h, w] in [0, 1]; a large photo is made smaller first."""
    return (
        op.Cast(at_most(op.Unsqueeze(op.Transpose(picture, perm=[2, 0, 1]), [0]), LARGEST), to=1)
        / 255.0
    )


@script(default_opset=op)
def over_white(rgba: FLOAT) -> FLOAT:
    """[1, 4, h, w] -> [1, 3, h, w]; transparent parts become white."""
    alpha = rgba[:, 3:4, :, :]
    return rgba[:, 0:3, :, :] * alpha + (1.0 - alpha)


@script()
def colours(picture: UINT8, size: INT64) -> FLOAT:
    """uint8 [h, w, 4] -> float32 [1, 3, *size] in [0, 1]."""
    return resized(over_white(channels_of(picture)), size)


@script()
def resized_as_pillow(image: FLOAT, size: INT64) -> FLOAT:
    """As `resized`, but pixels outside the image count nothing: Pillow's BILINEAR, to a byte."""
    channels = op.Shape(image, start=0, end=2)
    sizes = op.Concat(channels, size, axis=0)
    return op.Resize(image, None, None, sizes, mode="linear", antialias=1, exclude_outside=1)


@script()
def within(picture: UINT8, size: INT64) -> FLOAT:
    """uint8 [h, w, 4] -> float32 [1, 3, h', w'] in [0, 1]: the largest that fits into `size`."""
    rgb = over_white(channels_of(picture))
    sides = op.Cast(op.Shape(rgb, start=2), to=1)
    scale = op.ReduceMin(op.Cast(size, to=1) / sides)
    inner = op.Max(op.Floor(sides * scale + 0.5), 1.0)
    return resized_as_pillow(rgb, op.Cast(inner, to=7))


@script()
def margins(image: FLOAT, size: INT64) -> INT64:
    """What is missing above, left, below and right of [1, c, h, w], as Pad takes it."""
    room = size - op.Shape(image, start=2)
    before = room / 2
    none = op.Constant(value_ints=[0, 0])
    return op.Concat(none, before, none, room - before, axis=0)


@script()
def on_one_colour(picture: UINT8, size: INT64, value: FLOAT) -> FLOAT:
    """uint8 [h, w, 4] -> float32 [1, 3, *size]: the picture in the middle, `value` around it."""
    inside = within(picture, size)
    return op.Pad(inside, margins(inside, size), value)


@script()
def on_its_edge(picture: UINT8, size: INT64) -> FLOAT:
    """The same, with the picture's outermost pixels around it."""
    inside = within(picture, size)
    return op.Pad(inside, margins(inside, size), mode="edge")


@script(default_opset=op)
def grey_of(rgb: FLOAT) -> FLOAT:
    """[1, 3, h, w] -> [1, 1, h, w], weighted as Pillow's mode L (ITU-R BT.601)."""
    weights = op.Constant(value_floats=[0.299, 0.587, 0.114])
    return op.ReduceSum(rgb * op.Reshape(weights, [1, 3, 1, 1]), [1])


@script()
def grey_on_one_colour(picture: UINT8, size: INT64, value: FLOAT) -> FLOAT:
    """As `on_one_colour`, in grey."""
    return grey_of(on_one_colour(picture, size, value))


@script()
def grey_on_its_edge(picture: UINT8, size: INT64) -> FLOAT:
    """As `on_its_edge`, in grey."""
    return grey_of(on_its_edge(picture, size))


@script()
def stretched(picture: UINT8, size: INT64) -> FLOAT:
    """uint8 [h, w, 4] -> float32 [1, 3, *size]: the picture fills it, whatever its shape."""
    return resized_as_pillow(over_white(channels_of(picture)), size)


@script()
def grey_stretched(picture: UINT8, size: INT64) -> FLOAT:
    """As `stretched`, in grey."""
    return grey_of(stretched(picture, size))
