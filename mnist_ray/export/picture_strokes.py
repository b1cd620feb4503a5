"""Parts of the preparation graph that tell strokes from dirt, a table's edge and other digits.

Ink is split into its connected components. As in `picture_parts`, onnxscript translates the text of
these functions into ONNX.
"""

from typing import TYPE_CHECKING

from onnxscript import script

from mnist_ray.export.picture_parts import op

if TYPE_CHECKING:
    from mnist_ray.export.picture_parts import FLOAT
else:
    from onnxscript import FLOAT

SPECK = 0.06  # of the largest component's area; a smaller one is dirt
ALONG = 0.6  # of the shorter side: how far a table's edge lies along the picture's border
BAND = 0.3  # of the shorter side: how far it reaches in
OTHER = 0.2  # of the largest component's area, that another digit has at least
AS_HIGH = 0.55  # of its height


@script(default_opset=op)
def components(mask: FLOAT) -> FLOAT:
    """[1, 1, h, w] of 0 and 1 -> a number above 0 for each connected component, 0 elsewhere.

    Each pixel takes the largest number beside it until none changes.
    """
    index = op.Cast(op.Range(1, op.Size(mask) + 1, 1), to=1)
    label = mask * op.Reshape(index, op.Shape(mask))
    more = op.ReduceMax(mask, keepdims=0) > 0.0
    while more:
        a = mask * op.MaxPool(label, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        b = mask * op.MaxPool(a, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        c = mask * op.MaxPool(b, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        d = mask * op.MaxPool(c, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        more = op.ReduceMax(d - label, keepdims=0) > 0.0
        label = d
    return label


@script(default_opset=op)
def sum_of_each(label: FLOAT, values: FLOAT) -> FLOAT:
    """At each pixel the sum of the values over its component."""
    place = op.Cast(op.Reshape(label, [-1]), to=7)
    zeros = op.ConstantOfShape(op.Reshape(op.Size(label) + 1, [1]))
    sums = op.ScatterElements(zeros, place, op.Reshape(values, [-1]), axis=0, reduction="add")
    return op.Reshape(op.Gather(sums, place), op.Shape(label))


@script(default_opset=op)
def most_of_each(label: FLOAT, values: FLOAT) -> FLOAT:
    """At each pixel the largest of the values, which are 0 or more, over its component."""
    place = op.Cast(op.Reshape(label, [-1]), to=7)
    zeros = op.ConstantOfShape(op.Reshape(op.Size(label) + 1, [1]))
    most = op.ScatterElements(zeros, place, op.Reshape(values, [-1]), axis=0, reduction="max")
    return op.Reshape(op.Gather(most, place), op.Shape(label))


@script(default_opset=op)
def halved(mask: FLOAT) -> FLOAT:
    """[1, 1, h, w] at half its size; gaps of a pixel are bridged."""
    return op.MaxPool(mask, kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 1, 1])


@script(default_opset=op)
def enlarged(mask: FLOAT, image: FLOAT) -> FLOAT:
    """A mask of half an image's size at that size, five pixels wider."""
    wide = op.MaxPool(mask, kernel_shape=[5, 5], pads=[2, 2, 2, 2])
    return op.Resize(wide, None, None, op.Shape(image), mode="nearest")


@script(default_opset=op)
def rows_of(mask: FLOAT) -> FLOAT:
    """At each pixel the number of its row, from 0."""
    index = op.Cast(op.Range(0, op.Squeeze(op.Shape(mask, start=2, end=3)), 1), to=1)
    return op.Expand(op.Reshape(index, [1, 1, -1, 1]), op.Shape(mask))


@script(default_opset=op)
def columns_of(mask: FLOAT) -> FLOAT:
    """At each pixel the number of its column, from 0."""
    index = op.Cast(op.Range(0, op.Squeeze(op.Shape(mask, start=3, end=4)), 1), to=1)
    return op.Expand(op.Reshape(index, [1, 1, 1, -1]), op.Shape(mask))


@script(default_opset=op)
def edges_in(mask: FLOAT) -> FLOAT:
    """Those components that lie along the picture's border and nowhere else, as a table's edge."""
    sides = op.Cast(op.Shape(mask, start=2), to=1)
    shorter = op.ReduceMin(sides, keepdims=0)
    rows, columns = rows_of(mask), columns_of(mask)
    last = op.Reshape(sides - 1.0, [2, 1])
    below = op.Reshape(last[0], [1, 1, 1, 1]) - rows
    right = op.Reshape(last[1], [1, 1, 1, 1]) - columns
    depth = op.Min(op.Min(rows, columns), op.Min(below, right))
    label = components(mask)
    along = sum_of_each(label, mask * op.Cast(depth < 0.5, to=1)) >= ALONG * shorter
    inside = sum_of_each(label, mask * op.Cast(depth > BAND * shorter, to=1))
    outside = inside <= 0.02 * sum_of_each(label, mask)
    return mask * op.Cast(op.And(along, outside), to=1)


@script(default_opset=op)
def clear_in(ink: FLOAT, share: FLOAT, noise: FLOAT) -> FLOAT:
    """1 where ink is above the noise and above this share of the strongest ink."""
    strongest = op.ReduceMax(ink, keepdims=0)
    return op.Cast(ink > op.Max(share * strongest, 6.0 * noise), to=1)


@script(default_opset=op)
def foreign_in(ink: FLOAT, noise: FLOAT) -> FLOAT:
    """[1, 1, h, w] -> 1 where a table's edge or a speck of dirt is to be ignored."""
    edges = enlarged(edges_in(halved(clear_in(ink, 0.3, noise))), ink)
    rest = ink * (1.0 - edges)
    # Where nothing else is drawn, it is the drawing itself.
    edges = edges * op.Cast(op.ReduceMax(rest, keepdims=0) > 6.0 * noise, to=1)
    mask = halved(clear_in(ink * (1.0 - edges), 0.3, noise))
    area = sum_of_each(components(mask), mask) * mask
    small = area < SPECK * op.ReduceMax(area, keepdims=0)
    # One of a single pixel cannot be told from a pen's dot where all is as small.
    return op.Max(edges, enlarged(mask * op.Cast(small, to=1), ink))


@script(default_opset=op)
def several_in(ink: FLOAT) -> FLOAT:
    """[1, 1, h, w] -> 1 where it holds more than one digit, else 0.

    Another digit is a component beside the largest one or below it, about as high.
    """
    clear = clear_in(ink, 0.3, 0.0)
    mask = halved(op.MaxPool(clear, kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
    label = components(mask)
    area = sum_of_each(label, mask) * mask
    largest = op.ReduceMax(area, keepdims=0)
    rows, columns = rows_of(mask) + 1.0, columns_of(mask) + 1.0
    far = op.Cast(op.Size(mask), to=1)
    bottom, right = most_of_each(label, rows * mask), most_of_each(label, columns * mask)
    top = far - most_of_each(label, (far - rows) * mask)
    left = far - most_of_each(label, (far - columns) * mask)
    high = bottom - top + 1.0
    main = mask * op.Cast(area == largest, to=1)
    its_top = far - op.ReduceMax(main * (far - top), keepdims=0)
    its_left = far - op.ReduceMax(main * (far - left), keepdims=0)
    its_bottom = op.ReduceMax(main * bottom, keepdims=0)
    its_right = op.ReduceMax(main * right, keepdims=0)
    its_height = its_bottom - its_top + 1.0
    wide = op.Max(right, its_right) - op.Min(left, its_left) + 1.0
    beside = op.Or(left > its_right, right < its_left)
    beside = op.And(beside, wide > 0.85 * op.Max(high, its_height))
    apart = op.Or(beside, op.Or(top > its_bottom, bottom < its_top))
    enough = op.And(area >= OTHER * largest, high >= AS_HIGH * its_height)
    found = mask * op.Cast(op.And(apart, enough), to=1)
    return op.ReduceMax(found, keepdims=0)
