"""A web page to draw on: a published model runs in the browser and answers while you draw.

python jobs/draw.py DIR/first                            # serves the page on this machine alone, and prints its address
python jobs/draw.py s3://bucket/runs/first --port 8000
python jobs/draw.py model.onnx --export site             # the page as a folder, to be hosted anywhere or opened from disk

npm is needed the first time: it fetches onnxruntime-web into ~/.cache/mnist_ray.
"""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from mnist_ray.settings import main


@dataclass(frozen=True)
class DrawSettings:
    """A page on which the model runs in the browser: draw with mouse, finger or keys, or drop a picture."""

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """An ONNX file or a run's directory, local or s3://…"""
    port: int = 0
    """Port on 127.0.0.1 (0: any that is free)."""
    export: str | None = None
    """Write the page into this folder instead of serving it."""


def run(settings: DrawSettings) -> None:
    from mnist_ray import draw

    if settings.export is None:
        draw.serve(settings.model, settings.port)
    else:
        draw.export(settings.model, settings.export)
        print(f"page: {settings.export}/index.html")


if __name__ == "__main__":
    main(DrawSettings, run)
