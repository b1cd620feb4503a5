"""--scheduler pbt: Population Based Training (Jaderberg et al. 2017) by Ray's scheduler.

All --trials configurations are drawn at random and trained in turns, epoch by epoch. Whenever all
have trained another `perturbation_interval` epochs, each of the worst `quantile_fraction` goes on
with the weights, the optimiser and the network of one of the best, and with its learning rate,
weight decay and label smoothing changed a little. All wait for each other there (Ray's `synch`):
so a trial's epochs are counted as everywhere else, and its curve has no gaps.

Study and tables hold the parameters that a trial began with; its `mnist_ray:exploits` say which
became of them.
"""

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray.tune.experiment import Trial

from mnist_ray.tune.patches import NotPickled, OpenPBT
from mnist_ray.tune.trial import NUMBER

if TYPE_CHECKING:
    from mnist_ray.tune.searcher import StudySearch

# All others, dropout too, are the network's, or would spoil the learnt weights.
PERTURBED = ("lr", "weight_decay", "label_smoothing")
FACTORS = (0.8, 1.2)
MOST_SMOOTHING = 0.5


class StudyPBT(NotPickled, OpenPBT):
    """Ray's scheduler; the searcher is told of every exploitation (StudySearch.exploited)."""

    def __init__(self, search_alg: "StudySearch", seed: int, **kwargs: Any) -> None:
        super().__init__(
            time_attr="epoch", synch=True, log_config=False, custom_explore_fn=dict, **kwargs
        )
        self.search_alg, self.random = search_alg, random.Random(seed)

    def explored(self, trial: Trial, donor: Trial) -> dict[str, Any]:
        """The donor's configuration, perturbed, under the trial's own number."""
        return {**perturbed(donor.config, self.random), NUMBER: trial.config[NUMBER]}

    def exploited(self, trial: Trial, donor: Trial, after: int) -> None:
        """Tells the searcher."""
        values = {key: trial.config[key] for key in PERTURBED if key in trial.config}
        self.search_alg.exploited(
            trial.trial_id, {"after_epoch": after, "from": donor.config[NUMBER], **values}
        )


def perturbed(config: Mapping[str, Any], generator: random.Random) -> dict[str, Any]:
    """The hyperparameters with each of PERTURBED that they have 0.8 or 1.2 times as large."""
    changed = {key: config[key] * generator.choice(FACTORS) for key in PERTURBED if config.get(key)}
    if "label_smoothing" in changed:
        changed["label_smoothing"] = min(changed["label_smoothing"], MOST_SMOOTHING)
    return {**config, **changed}
