"""PBT refuses every searcher, also one that suggests at random and learns nothing."""

import sys
from unittest.mock import MagicMock

from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.search import Searcher, SearchGenerator


class AtRandom(Searcher):
    """Takes its values from a study or a file, and ignores results."""

    learns = False


scheduler = PopulationBasedTraining("epoch", "accuracy", "max", hyperparam_mutations={"lr": [1]})
controller = MagicMock(search_alg=SearchGenerator(AtRandom("accuracy", "max")))
try:
    scheduler.on_trial_add(controller, Trial("reproducer", stub=True, config={"lr": 1}))
except ValueError as error:
    sys.exit(f"FAULT: {error}")
