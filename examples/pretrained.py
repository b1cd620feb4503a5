"""A network of timm that begins with weights from a local file, and the space to search it in.

python jobs/search.py --dataset digits --space examples.pretrained:space \
    --space-args model=resnet18 weights=resnet18.safetensors
"""

from pathlib import Path
from typing import Any

import optuna
import timm
from torch import nn
from torchvision.transforms import Normalize

from mnist_ray import DataShape, SettingsError


def space(
    trial: optuna.Trial, data: DataShape, model: str = "resnet18", weights: str = ""
) -> dict[str, Any]:
    """The hyperparameters of network and training.

    Args:
        trial: Optuna's.
        data: The data set's shape.
        model: A name from `timm.list_models()`.
        weights: A file of that model's weights (.safetensors, or .pth that torch reads with
            weights_only); every node of the cluster needs it. Empty: random weights.

    Raises:
        SettingsError: there is no such model or file.
    """
    if not timm.is_model(model):
        raise SettingsError(f"--space-args: model={model}: expected one of timm.list_models()")
    file = Path(weights).resolve()
    if weights and not file.is_file():
        raise SettingsError(f"--space-args: weights={weights}: expected a file; there is none")
    return {
        "model": "examples.pretrained:network",
        **data.hyperparameters(),
        "architecture": model,
        "weights": str(file) if weights else "",
        "optimizer": "adamw",
        "lr": trial.suggest_float("lr", 1e-4, 1e-2, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-5, 1e-2, log=True),
        "batch_size": 64,
        "schedule": "one_cycle",
    }


def network(hp: dict[str, Any]) -> nn.Module:
    """From the dict above to a module: float32 [batch, C, H, W] in [0, 1] -> logits.

    timm adapts the first layer to the channels and makes a new last one. Later jobs load a
    checkpoint over all weights, so that they do without the file.
    """
    body = timm.create_model(
        hp["architecture"],
        pretrained=bool(hp["weights"]) and Path(hp["weights"]).is_file(),
        pretrained_cfg_overlay={"file": hp["weights"]},
        in_chans=hp["in_channels"],
        num_classes=hp["classes"],
    )
    return nn.Sequential(Normalize(hp["mean"], hp["std"]), body)
