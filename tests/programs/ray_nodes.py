"""Waits until Ray has exactly so many living nodes, and prints the ids of those with CPUs."""

import sys
import time

import ray

ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) != int(sys.argv[1]):
    time.sleep(0.2)
print(*[n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")])
