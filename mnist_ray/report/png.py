"""The main figures once more, drawn by matplotlib: PNG files without a browser, for papers and READMEs."""

import warnings
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed, and none is looked for

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState
from optuna.visualization import matplotlib as draw_optuna

from mnist_ray import data
from mnist_ray.onnx_model import confidence_interval, probabilities
from mnist_ray.report.chain_part import ACCURACIES, LOSSES, chain
from mnist_ray.report.model_part import as_pixels, calibration, confusion
from mnist_ray.report.read import Run, thinned, varied
from mnist_ray.report.search_part import LINES, POINTS, contour_pairs, importances
