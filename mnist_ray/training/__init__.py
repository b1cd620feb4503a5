"""One network's training. Imports nothing: `machine` must come before torch's optimisers."""
