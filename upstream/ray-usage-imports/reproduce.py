"""To count callbacks for the usage statistics, Ray imports all trackers that are installed.

It costs every driver over a second with MLflow and wandb (see Ray pull request 34904).
"""

import sys

from ray import tune
from ray.air._internal import usage

usage.tag_callbacks([tune.Callback()])
if "ray.air.integrations.mlflow" in sys.modules:
    sys.exit("FAULT: a callback of one's own has Ray import its integrations of MLflow and others")
