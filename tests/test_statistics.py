"""Statistics: against values worked out elsewhere, and what must hold for any input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binomtest, spearmanr, wasserstein_distance

from benchmarks.statistics import (
    BOOTSTRAP_DRAWS,
    Interval,
    bootstrap_totals,
    difference_interval,
    exit_shift,
    exit_shift_by_chance,
    mean_layer,
    paired_difference_interval,
    percentile_interval,
    proportion_interval,
    rank_correlation_interval,
    ratio_change,
    ratio_interval,
)

SECONDS = arrays(
    np.float64, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=st.floats(1e-4, 1.0, allow_nan=False)
)
few = settings(max_examples=25, deadline=None)


@few
@given(SECONDS)
def test_a_run_over_itself_is_one(seconds: np.ndarray):
    assert ratio_interval(seconds, seconds) == (1, 1, 1)


@few
@given(SECONDS, st.floats(0.1, 10))
def test_a_constant_factor_is_found_exactly(seconds: np.ndarray, factor: float):
    assert ratio_interval(seconds * factor, seconds) == pytest.approx((factor, factor, factor))


@few
@given(SECONDS)
def test_swapping_inverts_the_ratio(seconds: np.ndarray):
    other = seconds[:, ::-1] + 0.01
    there, back = ratio_interval(seconds, other), ratio_interval(other, seconds)
    assert back.estimate == pytest.approx(1 / there.estimate)
    # Quantiles are interpolated between neighbouring draws, which does not commute with inverting.
    assert (back.low, back.high) == pytest.approx((1 / there.high, 1 / there.low), rel=0.02)


def test_ratio_is_of_totals_not_the_mean_of_ratios():
    baseline, candidate = np.array([[1.0, 9.0]]), np.array([[1.0, 1.0]])
    assert ratio_interval(baseline, candidate).estimate == 5


def test_totals_are_paired_by_shape_and_seed():
    seconds = np.random.default_rng(0).uniform(1, 2, (3, 40))
    totals = bootstrap_totals(seconds)
    assert totals.shape == (BOOTSTRAP_DRAWS,)
    assert bootstrap_totals(2 * seconds) == pytest.approx(2 * totals)
    assert not np.allclose(bootstrap_totals(seconds, seed=1), totals)
    assert bootstrap_totals(np.ones((3, 40))) == pytest.approx(np.full(BOOTSTRAP_DRAWS, 120))
    assert totals.mean() == pytest.approx(seconds.sum(), rel=0.01)


def test_ratio_interval_covers_the_truth():
    """Batches and repeats both vary; the 95 % interval must hold the true ratio about that often."""
    draw, held = np.random.default_rng(7), 0
    for _ in range(100):
        rows = draw.lognormal(0, 0.3, 60)
        noise = draw.normal(1, 0.05, (2, 5, 60)) * draw.normal(1, 0.02, (2, 5, 1))
        found = ratio_interval(1.5 * rows * noise[0], rows * noise[1])
        held += found.low <= 1.5 <= found.high
    assert held >= 85


def test_percentile_interval():
    assert percentile_interval(5, np.arange(1001.0)) == pytest.approx((5, 25, 975))


@given(st.integers(1, 2000).flatmap(lambda rows: st.tuples(st.integers(0, rows), st.just(rows))))
def test_proportion_interval_is_wilsons(counts: tuple[int, int]):
    expected = binomtest(*counts).proportion_ci(method="wilson")
    found = proportion_interval(*counts)
    assert found == pytest.approx((counts[0] / counts[1], expected.low, expected.high), abs=1e-9)


@few
@given(st.integers(1, 300), st.integers(0, 300), st.integers(0, 300), st.integers(0, 300))
def test_paired_differences_are_those_of_bonett_and_price(both: int, lost: int, gained: int, neither: int):
    before = np.repeat([True, True, False, False], [both, lost, gained, neither])
    after = np.repeat([True, False, True, False], [both, lost, gained, neither])
    found = paired_difference_interval(before, after)
    assert found.estimate == pytest.approx(after.mean() - before.mean())
    assert -1 <= found.low < found.high <= 1
    back = paired_difference_interval(after, before)
    assert back == pytest.approx((-found.estimate, -found.high, -found.low))


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (3, 0), (4, 0), (7, 0), (20, 10), (20, 5), (60, 30), (60, 50)])
def test_paired_intervals_exclude_zero_where_mcnemar_rejects(lost: int, gained: int):
    before = np.arange(1000) < 900
    after = before.copy()
    after[:lost], after[900 : 900 + gained] = False, True
    found = paired_difference_interval(before, after)
    p = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert (found.high < 0) == (p < 0.05)


def test_difference_of_shares_is_newcombes():
    """The worked example of Newcombe (1998), table II, row (a), method 10: 56/70 and 48/80."""
    found = difference_interval(proportion_interval(48, 80), proportion_interval(56, 70))
    assert found == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


@few
@given(st.floats(0.2, 5), st.floats(0.2, 5), st.floats(0.001, 0.5), st.floats(0.001, 0.5))
def test_ratios_change_by_the_noise_of_both(before: float, after: float, noise: float, other: float):
    one = Interval(before, before * np.exp(-noise), before * np.exp(noise))
    two = Interval(after, after * np.exp(-other), after * np.exp(other))
    half = np.hypot(noise, other)
    found = ratio_change(one, two)
    assert found == pytest.approx((after / before, after / before * np.exp(-half), after / before * np.exp(half)))


HISTOGRAM = st.lists(st.integers(0, 50), min_size=5, max_size=5).filter(sum)


@few
@given(HISTOGRAM, HISTOGRAM)
def test_exit_shift_is_wassersteins(before: list[int], after: list[int]):
    layers = np.arange(1, 6)
    expected = wasserstein_distance(layers, layers, before, after)
    assert exit_shift(before, after) == pytest.approx(expected)
    assert exit_shift(before, after) >= abs(mean_layer(after) - mean_layer(before)) - 1e-9


def test_exit_shift_by_chance_holds_for_chance():
    draw, held = np.random.default_rng(5), 0
    for _ in range(200):
        before, after = draw.multinomial(300, [0.4, 0.3, 0.2, 0.1], size=2)
        held += exit_shift(before, after) <= exit_shift_by_chance(before, after)
    assert 180 <= held < 200


def test_rank_correlation_in_one_group_is_spearmans():
    draw = np.random.default_rng(3)
    x = draw.integers(5, size=200)
    y = x + draw.integers(4, size=200)
    found = rank_correlation_interval(np.zeros(200), x, y)
    assert found.estimate == pytest.approx(spearmanr(x, y).statistic)
    assert 0 < found.low < found.estimate < found.high < 1


def test_rank_correlation_ignores_what_groups_explain():
    """Longer rows are harder and leave later; within a length nothing is related."""
    draw = np.random.default_rng(5)
    groups = np.repeat(np.arange(20), 30)
    found = rank_correlation_interval(groups, groups + draw.normal(size=600), groups + draw.normal(size=600))
    assert abs(found.estimate) < 0.1
    assert found.low < 0 < found.high


def test_rank_correlation_of_a_constant_is_zero():
    found = rank_correlation_interval(np.zeros(10), np.arange(10), np.ones(10))
    assert found == (0, 0, 0)
