"""A space and a network whose trials fail in the way that their parameter `kind` names."""

import os
import signal
import time

import torch
from torch import nn


def space(trial, data):
    kind = trial.suggest_categorical("kind", ["fine", "hangs", "stands", "raises", "nan", "memory"])
    return {
        "model": "faulty:network",
        "kind": kind,
        "lr": 0.01,
        "schedule": "constant",
        "optimizer": "sgd",
        "batch_size": 64,
        **data.hyperparameters(),
    }


class Network(nn.Module):
    def __init__(self, hp):
        super().__init__()
        self.kind, self.layer = hp["kind"], nn.Linear(784, hp["classes"])

    def forward(self, images):
        if self.kind == "hangs":
            time.sleep(1e6)
        if self.kind == "stands":
            os.kill(os.getpid(), signal.SIGSTOP)  # not even Python goes on
        if self.kind == "raises":
            raise RuntimeError("what a network says when it fails")
        if self.kind == "memory":
            limit_memory()
            self.much = [torch.ones(25_000_000) for _ in range(40)]  # 4 GB
        return self.layer(images.flatten(1)) * (float("nan") if self.kind == "nan" else 1)


def limit_memory():
    # The kernel's own OOM killer, in a group of 200 MB more than the process has;
    # where there are no groups, what it would do.
    group = f"/sys/fs/cgroup/memory/mnist-ray-test-{os.getpid()}"
    try:
        os.mkdir(group)
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[1]) * 4096
        for name, value in (
            ("memory.limit_in_bytes", used + 200_000_000),
            ("cgroup.procs", os.getpid()),
        ):
            with open(f"{group}/{name}", "w") as file:
                file.write(str(value))
    except OSError:
        os.kill(os.getpid(), signal.SIGKILL)


def network(hp):
    return Network(hp)
