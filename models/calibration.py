"""How far an exit's confidence is from its accuracy."""

import numpy as np
from scipy.special import softmax

BINS = 15


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
