"""For overhead.py: the least that can be had of Ray and torch. Prints JSON: when a worker has torch
and ray.tune, and each one's PSS in MB.

python bare_ray.py WORKERS
"""

import json
import os
import sys
import time

import ray


class Worker:
    """Imports what a trial's process imports first."""

    def ready(self) -> tuple[float, float]:
        import torch  # noqa: F401
        from memory import pss
        from ray import tune  # noqa: F401

        now = time.time()
        time.sleep(1)  # until the others have them too: what all of them map counts in parts
        return now, pss(os.getpid())


if __name__ == "__main__":
    ray.init(address="local", log_to_driver=False, logging_level="ERROR")
    workers = [ray.remote(num_cpus=0)(Worker).remote() for _ in range(int(sys.argv[1]))]
    answers = ray.get([worker.ready.remote() for worker in workers])
    ray.shutdown()
    print(
        json.dumps(
            {"ready": min(now for now, _ in answers), "pss": [memory for _, memory in answers]}
        )
    )
