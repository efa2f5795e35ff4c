"""What training made of each exit, beside networks trained alone: worked out by hand."""

from pathlib import Path
from typing import Any

import pytest

from reports.runs import Row, load_runs
from reports.training_table import area, training_table
from tests.fake_runs import add, checkpoint, record, truncated


def add_network(folder: Path, method: str, scores: list[float], seed: int = 42, **changes: Any) -> None:
    name = f"{method}-{seed}-{len(scores)}"
    given: dict[str, Any] = {"name": name, "seed": seed, "select_scores": scores, "num_layers": len(scores)} | changes
    session = changes.pop("session", name)
    given.pop("session", None)
    made = truncated if given.get("truncates") else record
    layers = [len(scores)] if given.get("truncates") else []
    add(folder, made(name, *layers, session=session, checkpoint=checkpoint(method, **given)))


def rows_of(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    table = training_table(load_runs(folder))

    def cells(row: Row) -> dict[str, str]:
        return {column.title: column.cell(row) for column in table.columns}

    return {(row["setting"], row["exit"]): cells(row) for row in table.rows}


def test_exits_beside_networks_trained_alone(tmp_path: Path):
    add_network(tmp_path, "pabee", [0.6, 0.8, 0.85, 0.88], select_ece=[0.3, 0.2, 0.1, 0.05])
    add_network(tmp_path, "classifier", [0.5, 0.4, 0.5, 0.91], session="c")
    add_network(tmp_path, "classifier", [0.5, 0.7], session="c", truncates=4, backbone="models/minilm-2")
    found = rows_of(tmp_path)
    assert {exit_ for _, exit_ in found} == {"1", "2", "3", "4", "area 2 to 4"}
    assert {setting for setting, _ in found} == {"pabee"}, "a classifier has no exits to speak of"
    assert found["pabee", "1"] | {"task": ""} == {
        "task": "",
        "model": "pabee",
        "seeds": "42",
        "exit": "1",
        "select %": "60.0",
        "ECE": "0.300",
        "trained alone %": "",
        "gain, points": "",
    }
    assert (found["pabee", "2"]["trained alone %"], found["pabee", "2"]["gain, points"]) == ("70.0", "+10.0")
    assert (found["pabee", "4"]["trained alone %"], found["pabee", "4"]["gain, points"]) == ("91.0", "-3.0")
    # Between layers 2 and 4: (0.8 + 2 * 0.85 + 0.88) / 4 against (0.7 + 0.91) / 2.
    assert found["pabee", "area 2 to 4"]["select %"] == f"{100 * 0.845:.1f}"
    assert found["pabee", "area 2 to 4"]["trained alone %"] == f"{100 * 0.805:.1f}"


def test_the_last_exit_of_two_stages_was_trained_alone(tmp_path: Path):
    add_network(tmp_path, "romebert", [0.6, 0.8, 0.85, 0.88])
    add_network(tmp_path, "deebert", [0.5, 0.6, 0.7, 0.90])
    found = rows_of(tmp_path)
    assert found["romebert", "4"]["gain, points"] == "-2.0"
    assert found["deebert", "4"]["gain, points"] == "+0.0"
    assert found["romebert", "area 1 to 4"]["gain, points"] == ""


def test_gains_are_taken_seed_by_seed(tmp_path: Path):
    for seed, own, alone in ((42, 0.80, 0.79), (43, 0.90, 0.88)):
        add_network(tmp_path, "pabee", [0.5, own], seed)
        add_network(tmp_path, "classifier", [0.5, alone], seed)
    found = rows_of(tmp_path)["pabee", "2"]
    assert (found["select %"], found["gain, points"]) == ("85.0 ± 7.1", "+1.5")
    add_network(tmp_path, "pabee", [0.5, 0.8], seed=44)
    assert rows_of(tmp_path)["pabee", "2"]["gain, points"] == "", "a seed without a rival leaves no gain"
    add_network(tmp_path, "classifier", [0.5, 0.82], seed=44)
    assert rows_of(tmp_path)["pabee", "2"]["gain, points"] == "+0.3 (inside the spread)"


def test_another_backbone_is_no_rival(tmp_path: Path):
    add_network(tmp_path, "pabee", [0.5, 0.9])
    add_network(tmp_path, "classifier", [0.5, 0.8], backbone="roberta-base")
    assert rows_of(tmp_path)["pabee", "2"]["trained alone %"] == ""


def test_area():
    assert area({1: 0.5}) == 0.5
    assert area({2: 0.5, 4: 0.7}) == pytest.approx(0.6)
    assert area({1: 0.0, 2: 1.0, 4: 1.0}) == pytest.approx((0.5 + 2.0) / 3)
