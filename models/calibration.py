"""How far an exit's confidence is from its accuracy, and what would bring it there."""

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

BINS = 15
# Temperatures looked at: beyond these an exit is blind, or right on all rows.
COLDEST, HOTTEST = 0.02, 50.0


def expected_calibration_error(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean distance between confidence and accuracy over equal-width bins of confidence (Guo et al. 2017, section 2).

    Args:
        logits: [N, C] float.
        labels: [N] int.
    """
    probabilities = softmax(logits.astype(np.float64), axis=-1)
    confidence, right = probabilities.max(axis=-1), logits.argmax(axis=-1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    surplus = np.bincount(bins, weights=confidence - right, minlength=BINS)
    return float(np.abs(surplus).sum() / len(labels))


def best_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """What logits are divided by to make the labels most likely (Guo et al. 2017, section 4.2); above 1: overconfident.

    Args:
        logits: [N, C] float.
        labels: [N] int.
    """

    def surprise(log_temperature: float) -> float:
        likelihoods: Any = log_softmax(logits.astype(np.float64) / np.exp(log_temperature), axis=-1)
        return -likelihoods[np.arange(len(labels)), labels].mean()

    found: Any = minimize_scalar(surprise, bounds=np.log([COLDEST, HOTTEST]), method="bounded")
    return float(np.exp(found.x))
