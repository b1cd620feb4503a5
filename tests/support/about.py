"""What a run.json holds."""

from typing import Any

from mnist_ray.settings import SearchSettings, resolved


def facts(**settings: Any) -> dict[str, Any]:
    """Of a search with these settings."""
    data = {"name": "digits", "sha256": "0" * 64, "train": 3, "val": 2, "classes": ["0", "1"]}
    searched = SearchSettings(dataset="digits", storage="runs", data_dir="data")
    start = "2026-11-25T00:00:00+00:00"
    return {
        "name": "a",
        "state": "searching",
        "settings": {**resolved(searched), **settings},
        "data": data,
        "start": start,
    }
