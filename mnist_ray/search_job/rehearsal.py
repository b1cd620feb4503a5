"""The needs of the second job are tried before the first begins, with one untrained network.

A network that cannot be trained or exported, or that is random at inference, is found in seconds
and not after the search. The built-in networks are tried in the same way by the tests.
"""

from collections.abc import Mapping
from typing import Any

import torch

from mnist_ray.data import Images
from mnist_ray.errors import MnistRayError, SettingsError, described, first_line, shortened
from mnist_ray.export.write import export, verify
from mnist_ray.study.suggestions import Space, check_suggests
from mnist_ray.training.trainer import Trainer

IMAGES = 32
BRANCHES = ("data-dependent", "data dependent", "dynamic control flow")  # in torch's messages


def rehearse(space: Space, part: Images, augment: str = "none") -> None:
    """Trains one step of one network of the space, exports it and compares the file with it.

    Args:
        space: A function of an optuna.Trial, of which some suggestion succeeds.
        part: The training part.
        augment: As --augment.

    Raises:
        SettingsError: It cannot be done; names the network and the cause.
    """
    suggestion = check_suggests(space, "space", samples=1)
    hp = {**suggestion, **({} if augment == "none" else {"augment": augment})}
    images = torch.from_numpy(part.images[:IMAGES].copy())
    labels = torch.from_numpy(part.labels[:IMAGES].copy())
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
        trainer = _named(hp, "built", lambda: Trainer(hp, epochs=1, seed=0, precision="fp32"))
        _named(hp, "run", lambda: _check_answers(hp, trainer.eval_model(), images))
        _named(hp, "trained", lambda: trainer.train_epoch(images, labels))
        _named(hp, "saved", lambda: trainer.state_bytes({}))
        network = trainer.eval_model()
        file = _named(hp, "exported as ONNX", lambda: export(network, hp, {}))
        _named(hp, "exported as ONNX", lambda: verify(file, network, images.numpy()))


def _named(hp: Mapping[str, Any], what: str, step: Any) -> Any:
    """The step's result, or its error as one line that names the network."""
    try:
        return step()
    except (Exception, SystemExit) as error:  # any error of a person's network
        if isinstance(error, MnistRayError):
            found = first_line(error)
        elif any(mark in _all_messages(error).lower() for mark in BRANCHES):
            found = (
                f"its path depends on the values of its input, which one graph cannot hold "
                f"({shortened(described(_innermost(error)), 200)})"
            )
        else:
            found = shortened(described(_innermost(error)), 300)
        raise SettingsError(
            f"--space: the network {hp['model']!r} cannot be {what}: {found}"
        ) from error


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _all_messages(error: BaseException | None) -> str:
    texts = []
    while error is not None:
        texts.append(f"{type(error).__name__} {error}")
        error = error.__cause__
    return "\n".join(texts)


def _check_answers(hp: Mapping[str, Any], network: torch.nn.Module, images: torch.Tensor) -> None:
    with torch.inference_mode():
        first, second = (network(images / 255) for _ in range(2))
    expected = (len(images), hp["classes"])
    if tuple(first.shape) != expected:
        raise SettingsError(
            f"it returns {tuple(first.shape)} for {len(images)} images; expected logits {expected}"
        )
    if not torch.equal(first, second):
        raise SettingsError(
            "it answers the same images differently each time in evaluation mode; "
            "give F.dropout training=self.training, or use nn.Dropout"
        )
