"""Search, train and ship the best network for MNIST-like images, hosted by Ray Tune.

Example:
    >>> import mnist_ray as mr
    >>> run = mr.search(dataset="digits", trials=4, max_epochs=2, storage="runs", name="first")
    >>> run.best.params, run.best.value
    >>> label, probability = run.model.predict("seven.png")

Every option of the command `mnist-ray search` is a keyword. Nothing heavy is imported before use.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from mnist_ray.errors import MnistRayError, SettingsError, WorkError

if TYPE_CHECKING:
    from mnist_ray.data import Images
    from mnist_ray.results import Model, Run, load_model, open_run
    from mnist_ray.settings import FinetuneSettings, SearchSettings
    from mnist_ray.spaces import DataShape

__version__ = "0.1.0"
__all__ = [
    "DataShape",
    "FinetuneSettings",
    "Images",
    "MnistRayError",
    "Model",
    "Run",
    "SearchSettings",
    "SettingsError",
    "WorkError",
    "finetune",
    "load_model",
    "open_run",
    "search",
]

_ROOMS = {
    "DataShape": "spaces",
    "FinetuneSettings": "settings",
    "Images": "data",
    "Model": "results",
    "Run": "results",
    "SearchSettings": "settings",
    "load_model": "results",
    "open_run": "results",
}


def search(settings: "SearchSettings | None" = None, /, **options: Any) -> "Run":
    """Searches for the best network, fine-tunes it and publishes it as ONNX.

    It starts a Ray of its own and stops it at the end, or uses the one that runs already. The
    caller's signal handlers stay; KeyboardInterrupt passes through, and the run can be resumed.

    Args:
        settings: The options as one value, in place of keywords.
        options: The options of `mnist-ray search`, as `max_epochs=2`. Those of the form KEY=VALUE
            are dicts: `space_args={"max_width": 16}`.

    Returns:
        The run, read from its directory.

    Raises:
        SettingsError: An option is wrong.
        WorkError: The options are right, but the work failed.

    Example:
        >>> run = mnist_ray.search(dataset="digits", trials=4, max_epochs=2, finetune=False)
        >>> run.trials[["number", "state", "value"]]
    """
    _one_way(settings, options)
    from mnist_ray.results import Run  # noqa: PLC0415 (seconds at start)
    from mnist_ray.search_job import job  # noqa: PLC0415 (seconds at start)
    from mnist_ray.settings import SearchSettings, search_settings  # noqa: PLC0415 (seconds at start)

    if not isinstance(settings, SearchSettings | None):
        raise SettingsError(
            f"search: {settings!r} is not allowed; expected SearchSettings, or options by name as "
            "dataset='digits'"
        )
    settings = settings or search_settings(**options)
    finished = job.search(settings, handle_signals=False)
    return Run(finished.uri, settings.study)


def finetune(
    run: "Run | str | os.PathLike[str] | FinetuneSettings | None" = None, /, **options: Any
) -> "Run":
    """Fine-tunes the best network of a run in stages and publishes it as ONNX.

    Args:
        run: The run, or its directory; None for a new run that begins with `onnx="model.onnx"`.
            Or all options as one value.
        options: The options of `mnist-ray finetune`, as `stages="default"` and `committee=3`.

    Returns:
        The run, read again from its directory.

    Raises:
        SettingsError: An option is wrong, or there is nothing to fine-tune.
        WorkError: The options are right, but the work failed.

    Example:
        >>> run = mnist_ray.finetune("runs/first", stages="default", committee=3)
        >>> run.model.manifest["test_accuracy"]
    """
    from mnist_ray import FinetuneSettings, Run  # noqa: PLC0415 (seconds at start)
    from mnist_ray.finetune_job import job  # noqa: PLC0415 (seconds at start)

    if isinstance(run, FinetuneSettings):
        _one_way(run, options)
        settings = run
    else:
        uri = run.uri if isinstance(run, Run) else run
        if uri is not None and "run" in options:
            raise SettingsError("run: is given twice; give it once")
        settings = FinetuneSettings.of(**{"run": uri, **options})
    finished = job.finetune(settings, handle_signals=False)
    return Run(finished.uri, run._place if isinstance(run, Run) else None)


def _one_way(settings: object, options: dict[str, Any]) -> None:
    if settings is not None and options:
        raise SettingsError(
            f"{', '.join(options)}: give either settings or keywords, not both of them"
        )


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
