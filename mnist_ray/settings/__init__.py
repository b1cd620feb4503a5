"""The options of all commands, their checks and their text forms. Imports nothing heavy."""

from mnist_ray.settings.checks import check_lasting, check_search, check_storage
from mnist_ray.settings.commands import (
    DrawSettings,
    EvaluateSettings,
    ExportSettings,
    FinetuneSettings,
    PredictSettings,
    PushSettings,
    ReportSettings,
    ServeSettings,
)
from mnist_ray.settings.options import (
    DataOptions,
    SearchSettings,
    default_data_dir,
    default_storage,
    resolved,
)
from mnist_ray.settings.parse import main, parse, search_settings
from mnist_ray.settings.secrets import masked, masked_command, scrubbed
from mnist_ray.settings.text import (
    RECIPES,
    arguments,
    command,
    duration,
    is_stored,
    key_values,
    load,
    packaged,
)
from mnist_ray.settings.yaml_files import load_yaml, read_yaml

__all__ = [
    "RECIPES",
    "DataOptions",
    "DrawSettings",
    "EvaluateSettings",
    "ExportSettings",
    "FinetuneSettings",
    "PredictSettings",
    "PushSettings",
    "ReportSettings",
    "SearchSettings",
    "ServeSettings",
    "arguments",
    "check_lasting",
    "check_search",
    "check_storage",
    "command",
    "default_data_dir",
    "default_storage",
    "duration",
    "is_stored",
    "key_values",
    "load",
    "load_yaml",
    "main",
    "masked",
    "masked_command",
    "packaged",
    "parse",
    "read_yaml",
    "resolved",
    "scrubbed",
    "search_settings",
]
