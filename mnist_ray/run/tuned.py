"""The result of a second function of one's own: a state, and `tuned.json`, which names it.

The state's file has its SHA-256 in its name, and the manifest is written after it: a reader finds
the old result or the new one.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mnist_ray.errors import CorruptFileError, WorkError
from mnist_ray.run import layout
from mnist_ray.storage import RunStorage

# Of the manifest; it may have more.
FIELDS: dict[str, tuple[type, ...]] = {
    "file": (str,), "sha256": (str,), "metric": (str,), "value": (int, float),
    "value_before": (int, float), "epoch": (int,), "epochs": (int,), "trial": (int,),
}  # fmt: skip


@dataclass(frozen=True)
class Tuned:
    """What --finetune-with made.

    Attributes:
        state: The bytes that came with its best epoch; empty if none did.
        value: The run's metric then.
        manifest: `tuned.json`: function, trial, epoch, all metrics, hyperparameters and SHA-256.
    """

    state: bytes
    value: float
    manifest: Mapping[str, Any]

    def summary(self) -> str:
        """One line for people."""
        m = self.manifest
        return (
            f"{m['metric']} {m['value']:.4g} after epoch {m['epoch']} of {m['epochs']}; "
            f"trial {m['trial']} had {m['value_before']:.4g}"
        )

    @classmethod
    def read(cls, storage: RunStorage) -> "Tuned":
        """The result that a run has.

        Raises:
            WorkError: There is none.
            CorruptFileError: It is not what the manifest describes.
        """
        if not storage.exists(layout.TUNED):
            raise WorkError(f"the run at {storage.uri} has no result of --finetune-with")
        manifest = storage.read_json(layout.TUNED)
        whole = isinstance(manifest, dict) and all(
            isinstance(manifest.get(key), kind) for key, kind in FIELDS.items()
        )
        file = manifest["file"] if whole else ""
        if not (layout.is_tuned_state(file) and storage.exists(file)):
            raise CorruptFileError(
                f"{storage.join(layout.TUNED)} is damaged, or names no state of its run"
            )
        state = storage.read_bytes(file)
        if hashlib.sha256(state).hexdigest() != manifest["sha256"]:
            raise CorruptFileError(
                f"{storage.join(file)} is damaged: its SHA-256 is not that of {layout.TUNED}"
            )
        return cls(state, manifest["value"], manifest)


def publish(storage: RunStorage, state: bytes, described: Mapping[str, Any]) -> Tuned:
    """Writes the state, then the manifest that names it; then older states are removed."""
    sha256 = hashlib.sha256(state).hexdigest()
    file = layout.tuned_state(sha256)
    manifest = {"file": file, "sha256": sha256, **described}
    storage.write_bytes(file, state)
    storage.write_json(layout.TUNED, manifest)
    for name in storage.list():
        if layout.is_tuned_state(name) and name != file:
            storage.delete(name)
    return Tuned(state, manifest["value"], manifest)
