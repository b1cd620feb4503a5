"""One epoch of a trial with --tensorboard. trial_with_graph.py FOLDER: the run's directory."""

import sys

from mnist_ray.tune.trial import NUMBER, TrialContext
from tests.support.trials import HP, Here

Here.context_of_test = TrialContext(
    sys.argv[1], "val_accuracy", 1, 0, "fp32", 1, 0, tensorboard=True
)
trial = Here({**HP, NUMBER: 1})
assert "tracker_warning" not in trial.train()
