"""Latency under load: the simulated queue is the one that theory knows, and the table and plot say what they are."""

from pathlib import Path

import numpy as np
import pytest

from reports.choice import apply_floor, choose
from reports.load import LOADS, Server, latencies, load_table, p50_p99_ms
from reports.load_plot import draw_load
from reports.runs import Runs, load_runs
from tests.fake_runs import INT8, SHAPE, add, add_timings, early, record, truncated

EXPONENTIAL = -np.log(1 - (np.arange(2000) + 0.5) / 2000) / 1000  # quantiles of services of 1 ms on average


@pytest.mark.parametrize("load", [0.2, 0.5, 0.8, 0.9])
def test_exponential_services_answer_as_an_mm1_queue(load: float):
    """Latency is exponential, too, with the mean 1 / (capacity - arrivals)."""
    found = latencies(EXPONENTIAL, load * 1000)
    mean = 1 / (1000 - load * 1000)
    tolerance = 0.02 / (1 - load)
    assert found.mean() == pytest.approx(mean, rel=tolerance)
    assert np.quantile(found, [0.5, 0.99]) == pytest.approx(mean * np.log([2, 100]), rel=tolerance)


@pytest.mark.parametrize("load", [0.2, 0.5, 0.8, 0.9])
def test_constant_services_wait_half_as_long(load: float):
    """Pollaczek and Khinchine: the mean wait of an M/D/1 queue."""
    wait = latencies(np.full(100, 0.001), load * 1000).mean() - 0.001
    assert wait == pytest.approx(0.001 * load / (2 * (1 - load)), rel=0.02 / (1 - load))


def test_a_queue_by_hand(monkeypatch: pytest.MonkeyPatch):
    """Rows at 1, 1.5 and 9 s, of 2 s each: the second waits until the first is answered, at 3 s."""

    class Draw:
        def exponential(self, mean: float, n: int) -> np.ndarray:
            return np.array([1.0, 0.5, 7.5])

        def integers(self, n: int, size: int) -> np.ndarray:
            return np.zeros(size, np.int64)

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Draw())
    monkeypatch.setattr("reports.load.ARRIVALS", 3)
    assert latencies(np.array([2.0]), 1.0).tolist() == [2.0, 3.5, 2.0]


def test_nobody_keeps_up_with_more_than_it_can_answer():
    server = Server("any", {}, np.full(10, 0.01))
    assert p50_p99_ms(server, 50) is not None
    assert p50_p99_ms(server, 99) is None
    assert p50_p99_ms(server, 500) is None


def test_the_same_seed_is_the_same_curve():
    assert np.array_equal(latencies(EXPONENTIAL, 500), latencies(EXPONENTIAL, 500))
    assert not np.array_equal(latencies(EXPONENTIAL, 500), latencies(EXPONENTIAL, 500, seed=1))


def write(folder: Path, **shape: int) -> Runs:
    """Without exits 2 ms a row; with them a quarter of the rows take 2.2 ms, and the others 0.6."""
    shared = {"recipe": INT8, "shape": SHAPE | shape}
    noise = np.random.default_rng(0).normal(1, 0.01, (4, 64))
    timed = [
        (record("float32", shape=SHAPE | shape), 0.004 * noise),
        (record("whole", **shared), 0.002 * noise),
        (truncated("fewer", 2, **shared), 0.0015 * noise),
        (early("early", **shared), np.where(np.arange(64) % 4, 0.0006, 0.0022) * noise),
    ]
    for run, seconds in timed:
        add(folder, run)
        add_timings(folder, run.run_id, seconds, shape.get("batch_size", 1))
    return apply_floor(load_runs(folder))


def test_table(tmp_path: Path):
    runs = write(tmp_path)
    table = load_table(runs, choose(runs))
    assert [row["load"] for row in table.rows] == LOADS
    assert [row["arrivals_per_s"] for row in table.rows] == pytest.approx([500 * load for load in LOADS], rel=0.01)
    by_load = {row["load"]: row for row in table.rows}
    idle, busy, over = by_load[0.1], by_load[0.9], by_load[1.1]
    # With hardly anyone before it, a row's time is its own: the slowest ones pay for their exits.
    assert idle["early exit p50_ms"] < idle["no exits p50_ms"]
    assert idle["early exit p99_ms"] > 2.2
    # Under load the queue is what one waits for, and early exit shortens it, for the slowest rows, too.
    assert busy["early exit p99_ms"] < busy["fewer layers p99_ms"] < busy["no exits p99_ms"]
    assert (over["no exits p99_ms"], over["fewer layers p99_ms"] is None, over["early exit p99_ms"] is None) == (
        None,
        False,
        False,
    )
    cells = {column.title: column.cell(over) for column in table.columns}
    assert (cells["load %"], cells["no exits p50 ms"], cells["no exits p99 ms"]) == ("110", "-", "-")
    assert float(cells["early exit p50 ms"]) > 0
    assert "simulated" in table.title.lower()
    assert any("not served" in line for line in table.notes)
    assert table.csv.splitlines()[0].startswith("task,shape,load,arrivals_per_s,no exits p50_ms,")


def test_plot(tmp_path: Path):
    runs = write(tmp_path)
    (choice,) = choose(runs)
    names = draw_load(runs, choice, tmp_path)
    assert names == [f"load_sst2_batch-1-padding-longest-threads-2.{kind}" for kind in ("png", "svg")]
    drawn = (tmp_path / names[1]).read_text()
    assert (tmp_path / names[0]).stat().st_size > 10_000
    assert "simulated" in drawn or drawn.count("<path") > 10


@pytest.mark.parametrize("shape", [{"batch_size": 8}, {"instances": 2}])
def test_only_rows_that_come_one_by_one_to_one_instance(tmp_path: Path, shape: dict[str, int]):
    runs = write(tmp_path, **shape)
    choices = choose(runs)
    assert load_table(runs, choices).rows == []
    assert draw_load(runs, choices[0], tmp_path) == []
