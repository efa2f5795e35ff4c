"""Scores at equal layer speed-ups: read off curves by hand, and from folders made by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.choice import apply_floor
from reports.runs import load_runs
from reports.speed_axis import Curve, read_curves, speed_table
from reports.speed_plot import draw_speeds
from tests.fake_runs import add, checkpoint, early, record, truncated

THRESHOLDS = {0.1: ([0, 50, 0, 50], 0.92), 0.6: ([80, 20, 0, 0], 0.80)}  # mean layers 3 and 1.2


def add_model(folder: Path, seed: int = 42, gain: float = 0.0, **changes: Any) -> None:
    """PABEE with two thresholds, its own exits 1 and 2, and two layers trained alone, which score 0.9."""
    info = checkpoint(seed=seed, name=f"pabee-{seed}")
    shared: dict[str, Any] = {"session": f"s{seed}", "checkpoint": info} | changes
    prefix = f"{seed} {changes}"
    add(folder, record(f"{prefix} whole", dev=0.96 + gain, **shared))
    for threshold, (counts, dev) in THRESHOLDS.items():
        policy = {"kind": "entropy", "threshold": threshold}
        add(folder, early(f"{prefix} {policy}", policy, dev=dev + gain, exit_counts={"dev": counts}, **shared))
    for layer, dev in ((1, 0.6), (2, 0.7)):
        add(folder, truncated(f"{prefix} {layer}", layer, dev=dev + gain, **shared))
    alone = checkpoint("classifier", name=f"cls-{seed}", num_layers=2, truncates=4, seed=seed, backbone="minilm-2")
    add(folder, truncated(f"{prefix} alone", 2, dev=0.9, **(shared | {"checkpoint": alone})))


def cells(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    table = speed_table(read_curves(apply_floor(load_runs(folder))))
    return {
        (row["setting"], row["leaves_by"]): {column.title: column.cell(row) for column in table.columns}
        for row in table.rows
    }


def test_scores_are_read_off_the_line_between_two_thresholds(tmp_path: Path):
    add_model(tmp_path)
    found = cells(tmp_path)
    entropy = found["pabee", "entropy"]
    # 2x is mean layer 2, at 5/9 of the way from 3 to 1.2: 0.92 - 5/9 * 0.12; 3x is 4/3.
    assert entropy["1x"] == "96.0"
    assert entropy["2x"] == f"{100 * (0.92 - 5 / 9 * 0.12):.1f}"
    assert entropy["3x"] == f"{100 * (0.80 + (4 / 3 - 1.2) / 1.8 * 0.12):.1f}"
    assert entropy["4x"] == entropy["5x"] == "up to 3.33x"
    own = found["pabee", "own first layers"]
    assert [own[f"{speedup}x"] for speedup in (1, 2, 4, 5)] == ["96.0", "70.0", "60.0", "up to 4.00x"]
    assert own["3x"] == f"{100 * (0.6 + 1 / 3 * 0.1):.1f}"
    alone = found["pabee", "first layers, trained alone"]
    # PABEE's whole network was not trained alone, so nothing stands at 1x.
    assert [alone[f"{speedup}x"] for speedup in (1, 2, 3)] == ["from 2.00x", "90.0", "up to 2.00x"]


def test_a_whole_classifier_is_the_slow_end_of_networks_trained_alone(tmp_path: Path):
    add_model(tmp_path)
    info = checkpoint("classifier", name="cls")
    alone = checkpoint("classifier", name="cls-2", num_layers=2, truncates=4, backbone="minilm-2")
    add(tmp_path, record("whole", dev=0.97, session="c", checkpoint=info))
    add(tmp_path, truncated("two", 2, dev=0.91, session="c", checkpoint=alone))
    found = cells(tmp_path)
    (line,) = [row for (setting, _), row in found.items() if setting.startswith("classifier")]
    assert (line["1x"], line["2x"]) == ("97.0", "91.0")


def test_each_network_of_a_session_has_lines_of_its_own(tmp_path: Path):
    """As in the last session of a tuning: another whole network, and exits on fewer layers."""
    add_model(tmp_path)
    shared = {"session": "s42", "checkpoint": checkpoint("romebert", name="rome")}
    add(tmp_path, record("whole", dev=0.97, **shared))
    add(tmp_path, truncated("cut", 2, dev=0.85, **shared))
    shallow = checkpoint("deebert", name="dee-2", num_layers=2, truncates=4, backbone="minilm-2")
    exits = {"exits": [1, 2], "exit_counts": {"dev": [10, 10, 0, 0]}}
    add(tmp_path, early("shallow", dev=0.75, **(shared | {"checkpoint": shallow} | exits)))
    found = cells(tmp_path)
    assert found["pabee", "own first layers"]["2x"] == "70.0"
    assert found["romebert", "own first layers"]["2x"] == "85.0"
    assert found["deebert", "entropy at [1, 2]"]["2x"] == "from 2.67x"
    assert {setting for setting, line in found if line == "first layers, trained alone"} == {"romebert"}


def test_seeds_are_averaged_and_differences_inside_their_spread_marked(tmp_path: Path):
    add_model(tmp_path)
    add_model(tmp_path, seed=43, gain=0.02)
    found = cells(tmp_path)
    assert found["pabee", "entropy"]["1x"] == "97.0 ± 1.4"
    assert found["pabee", "entropy"]["seeds"] == "42 43"
    # 2x: 0.853 and 0.873 are far below 0.9, at which both seeds' networks of two layers stand.
    assert found["pabee", "first layers, trained alone"]["2x"] == "90.0 ± 0.0"
    assert found["pabee", "entropy"]["2x"] == "86.3 ± 1.4"
    # 1x: the same whole network is the end of both lines, so neither is better.
    assert found["pabee", "own first layers"]["1x"] == "97.0 ± 1.4 ≈"


def test_a_seed_that_falls_short_leaves_no_mean(tmp_path: Path):
    add_model(tmp_path)
    info = checkpoint(seed=43, name="pabee-43")
    add(tmp_path, record("whole", session="o", checkpoint=info))
    add(tmp_path, early("early", {"kind": "entropy", "threshold": 0.1}, session="o", checkpoint=info))
    assert cells(tmp_path)["pabee", "entropy"]["3x"] == "up to 2.00x"


def test_one_shape_and_one_engine_are_read(tmp_path: Path):
    add_model(tmp_path)
    shape = {"batch_size": 32, "padding": "longest", "threads": 2}
    add_model(tmp_path, gain=-0.5, shape=shape)
    add(tmp_path, early("elsewhere", {"kind": "patience", "patience": 1}, engine="inductor"))
    found = cells(tmp_path)
    assert [leaves_by for _, leaves_by in found] == ["entropy", "first layers, trained alone", "own first layers"]
    assert found["pabee", "entropy"]["1x"] == "96.0"


def test_no_table_and_no_plot_without_early_exit(tmp_path: Path):
    add(tmp_path, record("whole"))
    add(tmp_path, truncated("two", 2))
    curves = read_curves(load_runs(tmp_path))
    assert speed_table(curves).rows == []
    assert draw_speeds(curves, "sst2", tmp_path) == []


def test_plot(tmp_path: Path):
    add_model(tmp_path)
    add_model(tmp_path, seed=43, gain=0.02)
    curves = read_curves(load_runs(tmp_path))
    assert draw_speeds(curves, "sst2", tmp_path / "plots") == ["speeds_sst2.png", "speeds_sst2.svg"]
    svg = (tmp_path / "plots" / "speeds_sst2.svg").read_text()
    assert draw_speeds(curves, "rte", tmp_path / "plots") == []
    draw_speeds(curves, "sst2", tmp_path / "again")
    assert (tmp_path / "again" / "speeds_sst2.svg").read_text() == svg


@given(
    st.dictionaries(st.integers(10, 60), st.floats(0, 1), min_size=1, max_size=8),
    st.floats(0.5, 8),
)
def test_a_curve_stays_between_its_points(points: dict[int, float], speedup: float):
    layers = np.array(sorted(points)) / 10
    curve = Curve(layers, np.array([points[layer] for layer in sorted(points)]), num_layers=6)
    found = curve.at(speedup)
    assert (found is None) == (speedup < 6 / layers[-1] or speedup > 6 / layers[0])
    if found is not None:
        assert curve.scores.min() - 1e-12 <= found <= curve.scores.max() + 1e-12
    for layer, score in zip(layers, curve.scores, strict=True):
        assert curve.at(6 / layer) == pytest.approx(score, abs=1e-6)


def test_areas_lie_between_the_same_layers(tmp_path: Path):
    add_model(tmp_path)
    found = cells(tmp_path)
    # From mean layer 1.2 to the whole network's 4: (0.86 * 1.8 + 0.94) / 2.8, and (0.66 * 0.8 + 0.83 * 2) / 2.8.
    assert found["pabee", "entropy"]["area %"] == "88.9"
    assert found["pabee", "entropy"]["area over fewer layers, points"] == "10.7"
    assert found["pabee", "own first layers"]["area %"] == "77.0"  # from layer 1: (0.65 + 0.83 * 2) / 3
    assert found["pabee", "own first layers"]["area over fewer layers, points"] == ""
    assert found["pabee", "first layers, trained alone"]["area %"] == ""  # a point has none


def test_an_area_without_its_rival_is_not_compared(tmp_path: Path):
    add_model(tmp_path)
    info = checkpoint("deebert", name="deebert")
    add(tmp_path, record("d whole", dev=0.9, session="d", checkpoint=info))
    add(tmp_path, early("d early", dev=0.8, session="d", checkpoint=info))
    found = cells(tmp_path)["deebert", "entropy"]
    assert (found["area %"], found["area over fewer layers, points"]) == ("85.0", "")


@given(st.dictionaries(st.integers(10, 60), st.floats(0, 1), min_size=2, max_size=8), st.floats(0.01, 0.99))
def test_areas_of_two_parts_add_up(points: dict[int, float], share: float):
    layers = np.array(sorted(points)) / 10
    curve = Curve(layers, np.array([points[layer] for layer in sorted(points)]), num_layers=6)
    first, last = float(layers[0]), float(layers[-1])
    middle = first + share * (last - first)
    whole, *parts = (curve.mean_height(*ends) for ends in ((first, last), (first, middle), (middle, last)))
    assert whole is not None
    assert whole == pytest.approx(share * parts[0] + (1 - share) * parts[1])
    assert curve.scores.min() - 1e-9 <= whole <= curve.scores.max() + 1e-9
    assert curve.mean_height(first - 0.1, last) is None
    assert curve.mean_height(first, last + 0.1) is None
