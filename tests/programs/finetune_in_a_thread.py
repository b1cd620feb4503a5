"""Calls finetune() in a thread, as a notebook's kernel may: with a run and a file of stages.

While it works, another process changes run.json. The caller has signal handlers of its own.
"""

import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from mnist_ray.finetune_job.job import finetune
from mnist_ray.run import layout
from mnist_ray.run.about import About
from mnist_ray.settings import FinetuneSettings
from mnist_ray.storage import RunStorage


def own(*_: object) -> None:
    pass


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, own)
run = RunStorage(sys.argv[1])
settings = FinetuneSettings(run=sys.argv[1], stages=sys.argv[2], cpus=1)
with ThreadPoolExecutor(1) as pool:
    work = pool.submit(finetune, settings, handle_signals=False)
    while not run.exists(layout.lease_file("fine-tuning")) and not work.done():
        time.sleep(0.05)
    About.read(run, "--run").patch(trials=99)
    finished = work.result()
assert handlers() == [own, own], handlers()
print(finished)
