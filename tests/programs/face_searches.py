"""Two searches of one process, the second in a thread beside a Ray of the caller's.

face_searches.py FOLDER: prints its findings as one JSON line, last.
"""

import faulthandler
import importlib
import json
import os
import pkgutil
import signal
import sys
import threading

import mnist_ray as mr

folder = sys.argv[1]
faulthandler.dump_traceback_later(450, exit=True)
for module in pkgutil.walk_packages(mr.__path__, "mnist_ray."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
assert callable(mr.search), "a submodule stands in the function's place"
assert callable(mr.finetune), "a submodule stands in the function's place"

SMALL = {
    "dataset": "digits",
    "train_images": 200,
    "val_images": 100,
    "max_epochs": 1,
    "storage": folder,
    "finetune": False,
    "space": "cnn",
}


def own_handler(number: int, frame: object) -> None:
    raise AssertionError("nobody sent a signal")


for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, own_handler)
os.environ["RAY_ADDRESS"] = "local"  # the first search would join one that just runs
first = mr.search(**SMALL, trials=2, name="first")
handlers = [signal.getsignal(number) is own_handler for number in (signal.SIGTERM, signal.SIGINT)]

import ray

left_no_ray = not ray.is_initialized()
# local: Ray would join one that another test has just started.
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
found: list[mr.Run] = []
thread = threading.Thread(target=lambda: found.append(mr.search(**SMALL, trials=1, name="second")))
thread.start()
thread.join()
kept_ray = ray.is_initialized() and ray.get(ray.remote(lambda: 1).remote()) == 1
ray.shutdown()

print(
    json.dumps(
        {
            "uris": [run.uri for run in (first, *found)],
            "states": [run.state for run in (first, *found)],
            "numbers": first.trials["number"].tolist(),
            "handlers": handlers,
            "left_no_ray": left_no_ray,
            "kept_ray": kept_ray,
        }
    )
)
