"""Writes, reads and deletes an object."""

import sys

from mnist_ray.storage import RunStorage

run = RunStorage(sys.argv[1])
run.write_bytes("quiet/a", b"x")
run.read_bytes("quiet/a")
run.delete("quiet")
print("done")
