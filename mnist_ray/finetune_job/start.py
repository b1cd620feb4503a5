"""The ONNX file that a fine-tuning begins with, where it does not begin with the search's best."""

from dataclasses import replace
from typing import Any, NamedTuple

from mnist_ray.data import Images, Reading
from mnist_ray.errors import SettingsError
from mnist_ray.hyperparameters import DATA_KEYS, misfit
from mnist_ray.run import layout
from mnist_ray.run.about import About
from mnist_ray.settings import FinetuneSettings, is_stored
from mnist_ray.settings.text import load_json


class Start(NamedTuple):
    """A file that holds one network of ours.

    Attributes:
        model: Its bytes.
        metadata: Its own key-value pairs.
        hyperparameters: Of its network, as the metadata has them.
    """

    model: bytes
    metadata: dict[str, str]
    hyperparameters: dict[str, Any]

    def check_fits(self, images: Images) -> None:
        """SettingsError if the network is for images of another shape, or other classes."""
        if found := misfit(self.hyperparameters, images.images.shape[1:], len(images.classes)):
            raise SettingsError(f"--onnx: {found}")

    def reading(self, path: str, dataset: str, *, named: bool) -> Reading:
        """How a new run reads its images: the file's own as the file says, others for its network.

        Args:
            path: The file, for messages.
            dataset: The run's data set.
            named: Whether a person named it: a folder of the same name may have grown.

        Raises:
            SettingsError: The file does not say how, or for what images its network is.
        """
        own = self.metadata.get("reading") if dataset == self.metadata.get("dataset") else None
        if not named or not is_stored(dataset):
            return Reading.from_json(own or "{}", path)
        where, given = "--onnx: the file's", self.hyperparameters
        channels, size, _ = (key.check(given.get(key.name), where) for key in DATA_KEYS)
        if len(size) != 2:
            raise SettingsError(f"{where} image_size is {size}; expected height and width")
        shape, padding = (channels, *size), self.metadata.get("padding")
        found = Reading.of_model(shape, padding, own, path)
        # --image-size is one number: the size of images that are not square is found out.
        return replace(found, image_size=None) if isinstance(found.image_size, tuple) else found


def read_start(path: str) -> Start:
    """The file at a path or an address, checked.

    Raises:
        SettingsError: It is damaged, another's or a committee: no network can be rebuilt.
    """
    from mnist_ray.export import read  # noqa: PLC0415 (seconds at start)

    model = read.read_model(path, "--onnx")
    metadata = read.metadata_of(read.load_verified(model, path))
    hyperparameters = load_json(metadata.get("hyperparameters", ""))
    if not isinstance(hyperparameters, dict):
        committee = isinstance(hyperparameters, list)
        found = (
            f"a committee of {len(hyperparameters)} networks" if committee else "of another program"
        )
        raise SettingsError(
            f"--onnx: {path} is {found}; expected one network, written by mnist_ray"
        )
    return Start(model, metadata, hyperparameters)


def start_of(settings: FinetuneSettings, about: About) -> Start | None:
    """The file that the chain begins with; None for the search's best checkpoint.

    Raises:
        SettingsError: The file cannot be used, or the run has no network to begin with.
    """
    storage = about.storage
    if settings.onnx is not None:
        return read_start(settings.onnx)
    # A search with --onnx has such a file too: the search began with it, and ended elsewhere.
    if storage.exists(layout.START) and not about.settings.get("onnx"):
        return read_start(storage.join(layout.START))
    if storage.exists(layout.BEST_TREES):
        raise SettingsError(
            f"--run: the best of {storage.uri} is a LightGBM model; expected a run of networks"
        )
    if not storage.exists(layout.BEST_NETWORK):
        raise SettingsError(
            f"--run: {storage.uri} has no best checkpoint yet; "
            "expected a run whose search has finished a trial"
        )
    return None
