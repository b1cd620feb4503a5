"""Bytes under a URI: a run's directory on a disk, on S3, Google Cloud Storage or Azure.

One interface (RunStorage) with two classes behind it (Folder, Bucket); retries are in one place.
"""

from mnist_ray.storage.address import refuse_credentials
from mnist_ray.storage.run_storage import (
    OwnedStorage,
    RunStorage,
    check_writable,
    open_run,
    tried_again,
)

__all__ = [
    "OwnedStorage",
    "RunStorage",
    "check_writable",
    "open_run",
    "refuse_credentials",
    "tried_again",
]
