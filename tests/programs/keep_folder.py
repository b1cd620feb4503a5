"""Makes a temporary folder of ours, prints its path and sleeps."""

import time

from mnist_ray.processes import temporary_folder

with temporary_folder("mray-t-") as folder:
    (folder / "file").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
