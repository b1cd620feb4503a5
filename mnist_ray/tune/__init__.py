"""Ray Tune: trainables, the searcher, schedulers, deterministic order, populations, hung workers."""
