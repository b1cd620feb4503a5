"""A scikit-learn model, trained by a function of one's own: no image, no network of this package.

mnist-ray search --train examples.sklearn_mlp:train --train-data examples.sklearn_mlp:data \
    --space examples.sklearn_mlp:space --metric accuracy --trials 12 --max-epochs 9
"""

import pickle

import numpy as np
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler


def data():
    x, y = load_wine(return_X_y=True)
    return train_test_split(StandardScaler().fit_transform(x), y, test_size=0.4, random_state=0)


def space(trial):
    return {
        "width": trial.suggest_int("width", 2, 64, log=True),
        "lr": trial.suggest_float("lr", 1e-4, 1e-1, log=True),
        "alpha": trial.suggest_float("alpha", 1e-6, 1e-1, log=True),
    }


def train(hp, seed, state, data):
    x, x_val, y, y_val = data
    model = pickle.loads(state) if state else MLPClassifier(
        hp["width"], learning_rate_init=hp["lr"], alpha=hp["alpha"], random_state=seed
    )  # fmt: skip
    while True:
        model.partial_fit(x, y, classes=np.unique(y))
        yield {"accuracy": model.score(x_val, y_val), "loss": model.loss_}, pickle.dumps(model)
