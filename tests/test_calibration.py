"""Calibration: confidence against accuracy, by hand and at its limits."""

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models.calibration import BINS, best_temperature, expected_calibration_error


def logits_of(probabilities: list[list[float]]) -> np.ndarray:
    return np.log(np.array(probabilities))


def test_two_bins_by_hand():
    """Three rows at 0.9 of which two are right, one at 0.6 that is wrong: (3 |0.9 - 2/3| + |0.6 - 0|) / 4."""
    logits = logits_of([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.6, 0.4]])
    assert expected_calibration_error(logits, np.array([0, 1, 1, 1])) == pytest.approx((3 * (0.9 - 2 / 3) + 0.6) / 4)


def test_surplus_and_want_in_one_bin_cancel():
    """Rows at 0.75, three in four right: calibrated, though no row's confidence is its outcome."""
    logits = logits_of([[0.75, 0.25]] * 4)
    assert expected_calibration_error(logits, np.array([0, 0, 0, 1])) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("label", "error"), [(0, 0.0), (1, 1.0)])
def test_certainty(label: int, error: float):
    assert expected_calibration_error(np.array([[1e4, -1e4]]), np.array([label])) == error


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_it_is_the_sum_over_bins(data: st.DataObject):
    rows, classes = data.draw(st.integers(1, 30)), data.draw(st.integers(2, 4))
    logits = data.draw(hnp.arrays(np.float64, (rows, classes), elements=st.floats(-6, 6)))
    labels = data.draw(hnp.arrays(np.int64, rows, elements=st.integers(0, classes - 1)))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    confidence, right = probabilities.max(axis=1), logits.argmax(axis=1) == labels
    place = confidence * BINS
    assume((np.abs(place - np.round(place)) > 1e-9).all())  # on an edge, the last bits choose the bin
    expected = 0.0
    for k in range(BINS):
        inside = [i for i in range(rows) if min(int(confidence[i] * BINS), BINS - 1) == k]
        if inside:
            expected += len(inside) / rows * abs(np.mean(confidence[inside]) - np.mean(right[inside]))
    assert expected_calibration_error(logits, labels) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_was_laid_on_is_found(temperature: float):
    draw = np.random.default_rng(1)
    logits = draw.normal(0, 2, (20_000, 3))
    labels = (logits + draw.gumbel(size=logits.shape)).argmax(axis=1)  # drawn from softmax(logits)
    assert best_temperature(temperature * logits, labels) == pytest.approx(temperature, rel=0.05)


def test_the_temperature_of_two_classes_by_hand():
    """Three in four are right at a margin of 2: calibrated at log 3, so the logits must be divided by 2 / log 3."""
    assert best_temperature(np.array([[2.0, 0.0]] * 4), np.array([0, 0, 0, 1])) == pytest.approx(
        2 / np.log(3), rel=1e-3
    )
