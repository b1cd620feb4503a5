"""One network's training. Nothing is imported here: `light_torch` must come before torch's optimisers."""
