"""Evaluate an ONNX model on a data set through onnxruntime.

python jobs/evaluate.py model.onnx --dataset mnist --data-dir DIR
python jobs/evaluate.py s3://bucket/runs/first               # a run's published model, on the data set it was made for
python jobs/evaluate.py model.onnx --part train
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from mnist_ray.errors import SettingsError
from mnist_ray.settings import main


@dataclass(frozen=True)
class EvaluateSettings:
    """Accuracy of an ONNX model on a data set, with its errors, confidence interval, classes and latency."""

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """An ONNX file or a run's directory, local or s3://…"""
    dataset: str | None = None
    """mnist, fashion-mnist, kmnist, cifar10, digits, or module:function for your own (default: the model's)."""
    data_dir: str | None = None
    """torchvision's root (default: from MNIST_RAY_DATA)."""
    part: Literal["test", "train"] = "test"
    """Which part of the data set."""


def run(settings: EvaluateSettings) -> None:
    from mnist_ray import data
    from mnist_ray.export import onnx_model

    model = onnx_model.read(settings.model)
    session = onnx_model.Session(model, settings.model)
    name = settings.dataset or session.metadata.get("dataset")
    if name is None:
        raise SettingsError(
            f"--dataset: {settings.model} does not say which data set it was made for; name one"
        )
    part = data.load(name, settings.part, settings.data_dir)
    result = session.evaluate(part.images, part.labels)
    low, high = onnx_model.confidence_interval(result.right, result.n)
    print(f"accuracy  {result.accuracy:.4%} of {result.n} images of {part.name} {part.part}")
    print(f"errors    {result.n - result.right}")
    print(f"interval  {low:.4%} to {high:.4%} (95 %, Wilson)")
    single = onnx_model.Session(model, settings.model, threads=1)
    print(
        f"latency   {single.latency_ms(part.images[0]):.3f} ms an image (one at a time, 1 thread, median of 100)"
    )
    for label, accuracy in zip(part.classes, result.per_class, strict=False):
        print(f"class     {label}  {accuracy:.4%}")


if __name__ == "__main__":
    main(EvaluateSettings, run)
