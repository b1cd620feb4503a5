"""Ray Tune: trainables, searcher, schedulers, deterministic order, populations, hung workers."""
