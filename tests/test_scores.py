"""Paired scores: against the task's own metrics, and simulated differences of known size found as often as stated."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from benchmarks.statistics import BOOTSTRAP_DRAWS, SCORES, Interval, mcnemar_p, score, score_draws
from models.data import METRICS, MetricName
from reports.answers import LEVEL, Answers, Difference, difference

few = settings(max_examples=40, deadline=None)
CLASSES, VALUES = st.integers(0, 2), st.sampled_from([-1.5, 0.0, 0.25, 0.3, 2.0, 5.0])  # with ties
COLUMNS = {"accuracy": CLASSES, "f1": st.integers(0, 1), "matthews": CLASSES, "pearson": VALUES, "spearman": VALUES}


def drawn_rows(column: st.SearchStrategy) -> st.SearchStrategy[list[tuple[float, float, int]]]:
    """Rows of a label, a prediction, and how often a draw holds the row."""
    rows = st.lists(st.tuples(column, column, st.integers(0, 3)), min_size=2, max_size=30)
    return rows.filter(lambda given: sum(count for _, _, count in given) > 1)


@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize("metric", list(METRICS))
@few
@given(st.data())
def test_draws_score_as_the_task_does(metric: MetricName, data: st.DataObject):
    """A draw that holds a row n times scores what the task's metric gives for rows that stand there n times."""
    rows = data.draw(drawn_rows(COLUMNS[metric]))
    labels, predictions, counts = map(np.array, zip(*rows, strict=True))
    repeated = np.repeat(labels, counts), np.repeat(predictions, counts)
    found = SCORES[metric](np.stack([counts, np.ones_like(counts)]).astype(float), labels, predictions)
    assert found == pytest.approx([METRICS[metric](*repeated), METRICS[metric](labels, predictions)], abs=1e-9)
    assert score(metric, labels, predictions) == pytest.approx(METRICS[metric](labels, predictions), abs=1e-9)


@pytest.mark.parametrize("metric", list(METRICS))
def test_draws_take_the_same_rows_for_all_runs(metric: str):
    draw = np.random.default_rng(0)
    labels = draw.integers(2, size=200)
    answers = np.where(draw.random(200) < 0.8, labels, 1 - labels)
    drawn = score_draws(metric, labels, [answers, answers, labels])
    assert drawn.shape == (3, BOOTSTRAP_DRAWS)
    assert (drawn[0] == drawn[1]).all()
    assert drawn[2] == pytest.approx(1)
    assert drawn[0].mean() == pytest.approx(score(metric, labels, answers), abs=0.01)
    assert drawn[0].std() > 0


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
def test_a_constant_has_no_correlation(metric: MetricName):
    """The mean of ten times 0.1 is not 0.1, and what rounding leaves must not be taken for a spread."""
    constant, labels = np.full(10, 0.1), np.arange(10) % 2
    assert score(metric, labels, constant) == METRICS[metric](labels, constant) == 0


@pytest.mark.parametrize("metric", list(METRICS))
def test_a_run_does_not_differ_from_itself(metric: str):
    draw = np.random.default_rng(0)
    labels, predictions, unused = draw.integers(2, size=(3, 200))
    given_ = Answers("da7a", labels, predictions, unused, unused, None)
    found = difference(metric, given_, given_)
    assert found is not None
    assert found.is_noise
    assert found.interval.estimate == 0
    if metric != "accuracy":  # its interval never vanishes (Bonett and Price)
        assert found.interval == (0, 0, 0)


def test_mcnemar_is_exact():
    """Agresti's example (1990), approval of the prime minister: 86 and 150 of 1600 changed their mind."""
    before = np.repeat([True, True, False, False], [794, 150, 86, 570])
    after = np.repeat([True, False, True, False], [794, 150, 86, 570])
    assert mcnemar_p(before, after) == pytest.approx(2 * binom.cdf(86, 236, 0.5)) == mcnemar_p(after, before)
    assert mcnemar_p(before, before) == 1


def rejects(changed: int, gained: int) -> bool:
    return changed > 0 and 2 * binom.cdf(min(gained, changed - gained), changed, 0.5) < LEVEL


def stated_rate(rows: int, lost: float, gained: float) -> float:
    """How often McNemar's test finds that a row is lost and gained with these chances, summed over all outcomes."""
    share, rate = lost + gained, 0.0
    for changed in range(rows + 1):
        if (chance := binom.pmf(changed, rows, share)) > 1e-9:
            found = [rejects(changed, up) for up in range(changed + 1)]
            rate += chance * float(binom.pmf(np.arange(changed + 1), changed, gained / share) @ np.array(found))
    return rate


@pytest.mark.parametrize(("lost", "gained"), [(0.03, 0.03), (0.03, 0.015), (0.05, 0.02)])
def test_accuracy_differences_are_found_as_often_as_stated(lost: float, gained: float):
    """872 rows, as SST-2's dev; equally good, 1.5 points worse, and 3 points worse."""
    draw, runs, p_of = np.random.default_rng(1), 600, cache(pair_p)
    counts = draw.multinomial(872, [lost, gained, 1 - lost - gained], size=runs)
    found = sum(p_of(int(down), int(up)) < LEVEL for down, up, _ in counts)
    rate = stated_rate(872, lost, gained)
    assert rate <= LEVEL if lost == gained else rate > 0.4
    assert abs(found / runs - rate) < 4 * np.sqrt(rate * (1 - rate) / runs)


def pair_p(lost: int, gained: int) -> float:
    before = np.arange(872) < 800
    after = before.copy()
    after[:lost], after[800 : 800 + gained] = False, True
    return mcnemar_p(before, after)


@pytest.mark.parametrize(("metric", "runs"), [("f1", 200), ("matthews", 200), ("pearson", 30), ("spearman", 30)])
@pytest.mark.parametrize("worse", [0.0, 1.0])
def test_bootstrap_differences_are_found_as_often_as_stated(metric: str, runs: int, worse: float):
    """Equally good runs differ beyond noise about once in 20; the interval holds a true difference 19 times in 20."""
    draw = np.random.default_rng(2)
    labels, before, after = simulated(metric, worse, 200_000, np.random.default_rng(3))
    truth = score(metric, labels, after) - score(metric, labels, before)
    found = [compared(metric, worse, draw) for _ in range(runs)]
    held = sum(given.interval.low <= truth <= given.interval.high for given in found) / runs
    assert abs(held - 0.95) < 4 * np.sqrt(0.95 * 0.05 / runs)
    beyond = sum(not given.is_noise for given in found) / runs
    assert beyond < 0.15 if worse == 0 else beyond > 0.5


def simulated(metric: str, worse: float, rows: int, draw: np.random.Generator) -> list[np.ndarray]:
    """Labels, and two runs' answers whose errors are partly shared; those of the second are larger."""
    signal, shared, own, other = draw.normal(size=(4, rows))
    columns = [signal, signal + 0.4 * (shared + own), signal + 0.4 * (shared + (1 + 2 * worse) * other)]
    return [(column > 0).astype(int) for column in columns] if metric in ("f1", "matthews") else columns


def compared(metric: str, worse: float, draw: np.random.Generator) -> Difference:
    labels, *answers = simulated(metric, worse, 250 if metric in ("f1", "matthews") else 100, draw)
    unused = np.ones(len(labels), int)
    found = difference(metric, *(Answers("da7a", labels, given, unused, unused, None) for given in answers))
    assert found is not None
    return found


def test_noise_is_told_by_the_test_where_there_is_one():
    inside, beyond = Interval(-0.01, -0.02, 0.01), Interval(-0.02, -0.03, -0.01)
    assert Difference(beyond, 0.05).is_noise
    assert not Difference(inside, 0.049).is_noise
    assert Difference(inside, None).is_noise
    assert not Difference(beyond, None).is_noise
