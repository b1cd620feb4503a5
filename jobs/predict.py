"""Classify people's own pictures with a published model.

python jobs/predict.py model.onnx digit.png photo.jpg        # any size, dark on light or light on dark
python jobs/predict.py s3://bucket/runs/first digit.png

Prints one line a file: its name, the class and its probability.
"""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from mnist_ray.errors import SettingsError
from mnist_ray.settings import main


@dataclass(frozen=True)
class PredictSettings:
    """Class and probability of each picture."""

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """An ONNX file or a run's directory, local or s3://…"""
    pictures: Annotated[Positional[tuple[str, ...]], arg(metavar="PICTURE ...")]
    """PNG, JPEG or other picture files, one digit each."""


def run(settings: PredictSettings) -> None:
    import json

    from mnist_ray.export import onnx_model
    from mnist_ray.export.pictures import Preprocessor, read_picture

    if not settings.pictures:
        raise SettingsError("name at least one picture after the model")
    session = onnx_model.Session(onnx_model.read(settings.model), settings.model)
    channels, height, width = session.image_shape
    preprocess = Preprocessor((height, width), channels)
    names = json.loads(session.metadata.get("classes", "null"))
    for path in settings.pictures:
        image = preprocess(read_picture(path))
        if channels == 1 and not image.any():
            print(f"{path}  -  nothing drawn")
            continue
        probabilities = onnx_model.probabilities(session.run(image))[0]
        best = int(probabilities.argmax())
        print(f"{path}  {names[best] if names else best}  {probabilities[best]:.4f}")


if __name__ == "__main__":
    main(PredictSettings, run)
