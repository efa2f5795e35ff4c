"""Several fine-tuning seeds: a grid in a suite, a checkpoint each, and in reports a mean with its spread."""

import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import benchmarks.runner as runner
import quant.export
from benchmarks.__main__ import main
from benchmarks.records import CheckpointInfo, read_records
from benchmarks.statistics import Spread, spread
from models.config import UserError
from models.tasks import TaskData
from quant.__main__ import main as serve
from quant.export import Exported
from reports import tables
from reports.__main__ import main as report
from reports.choice import apply_floor, choose
from reports.compare import compare, read_folder
from reports.labels import model_labels, setting_labels
from reports.runs import Row, load_runs
from reports.seeds import seeds_table
from tests import suites
from tests.fake_runs import INT8, add, checkpoint, early, record
from tests.workers import ThreadWorker

CHECKPOINT: dict[str, Any] = suites.TINY["checkpoints"][0]
POLICIES = ["full_depth", {"kind": "entropy", "threshold": 0.6}]


def test_seeds_are_a_grid(tmp_path: Path):
    seeded = CHECKPOINT | {"seed": [42, 43], "fewer_layers": [1]}
    suite = suites.parse(tmp_path, checkpoints=[seeded, CHECKPOINT])
    assert [spec.seed for spec in suite.checkpoints] == [42, 43, None]
    assert [spec.fewer_layers for spec in suite.checkpoints] == [[1], [1], []]
    # At toy size, one seed of each will do.
    assert [(spec.seed, spec.fewer_layers) for spec in suite.smoke().checkpoints] == [(42, [1])]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [42, -1]}, "checkpoints.0.seed: input should be greater than or equal to 0, found -1"),
        ({"seed": [[42]]}, "checkpoints.0.seed: input should be a valid integer, found"),
    ],
)
def test_a_seed_that_is_none(changes: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        suites.parse(tmp_path, checkpoints=[CHECKPOINT | changes])


def test_a_dry_run_tells_seeds_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = suites.write(tmp_path, checkpoints=[CHECKPOINT | {"seed": [42, 43]}, CHECKPOINT])
    assert main(["run", str(path), "--dry-run"]) == 0
    cases = [line.split("/")[1] for line in capsys.readouterr().out.splitlines() if line.startswith("synthetic/")]
    assert list(dict.fromkeys(cases)) == [f"synthetic-pabee-bert-2x32-{seed}" for seed in ("seed42", "seed43", "")]


def test_a_finished_folder_takes_no_seed(tmp_path: Path):
    with pytest.raises(UserError, match="seed: is of a fine-tuning, which folder: has behind it; remove it"):
        suites.parse(tmp_path, checkpoints=[{"folder": "somewhere", "seed": 43}])


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite of two seeds, trained and measured; the suite's own seed is a third number."""
    folder = tmp_path_factory.mktemp("seeds")
    seeded = CHECKPOINT | {"seed": [42, 43]}
    path = suites.write(folder, seed=7, checkpoints=[seeded], policies=POLICIES, timing={"rows": 8, "repeats": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "Worker", ThreadWorker)
        assert main(["run", str(path), "--checkpoints", str(folder / "ck"), "--output", str(folder / "out")]) == 0
    return folder / "out"


def test_each_seed_is_its_own_checkpoint_on_the_same_splits(output: Path):
    records = read_records(output)
    infos = {record.checkpoint.name: record.checkpoint for record in records if record.checkpoint}
    assert sorted(info.seed for info in infos.values()) == [42, 43]
    assert len({info.hash for info in infos.values()}) == 2
    data: TaskData = suites.parse(output.parent).tasks[0].load(None, 7)
    assert data.seed == 7
    assert {record.data_hash for record in records} == {data.data_hash}
    assert len({record.case for record in records}) == len(records) == 2 * 3
    assert all(len(info.select_ece) == len(info.select_scores) == 2 for info in infos.values())


def test_an_export_calibrates_on_the_rows_the_suite_fitted(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its splits were cut by the suite's seed, not by that of the fine-tuning."""
    given = []

    def export(*arguments: Any, engine: Any) -> Exported:
        given.append(arguments[3].data_hash)
        return Exported(0, 0, 0, 0, 0)

    monkeypatch.setattr(quant.export, "export", export)
    for folder in sorted((output.parent / "ck").iterdir()):
        assert serve(["export", str(folder), str(tmp_path), "--policy", "{kind: patience, patience: 1}"]) == 0
    assert given == [read_records(output)[0].data_hash] * 2


def test_a_folder_of_seeds_is_compared_by_case(output: Path):
    folder = read_folder(output)
    found = compare(folder, folder)
    assert {comparison.case for comparison in found.compared} == {record.case for record in read_records(output)}
    assert found.moved == found.only_before == found.only_after == []


def test_reports_of_a_real_run(output: Path, capsys: pytest.CaptureFixture[str]):
    assert report(["render", str(output)]) == 0
    assert "seed 43" in (output / "report" / "results.md").read_text()
    head, *lines = (output / "report" / "seeds.csv").read_text().splitlines()
    assert head.startswith("task,shape,setting,recipe,engine,configuration,seeds,dev_score,dev_score_spread")
    assert len(lines) == 3
    assert all(",42 43," in line for line in lines)
    assert report(["table", str(output)]) == 0
    assert "Over seeds" in capsys.readouterr().out


# Reports, from records made by hand


def seeded(seed: int, method: str = "pabee", **changes: Any) -> CheckpointInfo:
    return checkpoint(method, name=f"{method}-{seed}-{changes}", seed=seed, **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three seeds of PABEE, two of DeeBERT; one more of PABEE failed, and one of DeeBERT is INVALID."""
    for seed, dev, ms in ((42, 0.90, 2.0), (43, 0.92, 2.5), (44, 0.94, 1.0)):
        shared: dict[str, Any] = {"recipe": INT8, "session": f"p{seed}", "checkpoint": seeded(seed)}
        add(tmp_path, early(f"p{seed}", dev=dev, **shared), ms)
        add(tmp_path, record(f"whole{seed}", dev=0.99, **shared), 4.0)
    for seed, dev in ((42, 0.90), (43, 0.91)):
        add(tmp_path, early(f"d{seed}", dev=dev, recipe=INT8, checkpoint=seeded(seed, "deebert")))
    parity = {"rows": 8, "differing": 1, "below_epsilon": 0, "epsilon": 0.1}
    add(tmp_path, early("d44", dev=0.1, recipe=INT8, checkpoint=seeded(44, "deebert"), parity=parity))
    add(tmp_path, early("p45", recipe=INT8, checkpoint=seeded(45), status="error", error="no memory"))
    return tmp_path


def rows_of(folder: Path) -> dict[tuple[str, str], Row]:
    table = seeds_table(apply_floor(load_runs(folder)))
    return {
        (row["setting"], row["configuration"]): {column.title: column.cell(row) for column in table.columns}
        for row in table.rows
    }


def test_mean_and_spread_of_a_configuration(folder: Path):
    rows = rows_of(folder)
    assert list(rows) == [("deebert", "entropy 0.2"), ("pabee", "entropy 0.2"), ("pabee", "no exits")]
    pabee, deebert = rows["pabee", "entropy 0.2"], rows["deebert", "entropy 0.2"]
    assert pabee["seeds"] == "42 43 44"
    assert pabee["dev %"] == "92.0 ± 2.0"
    assert pabee["x INT8"] == f"{statistics.mean((2, 1.6, 4)):.2f} ± {statistics.stdev((2, 1.6, 4)):.2f}"
    assert deebert["seeds"] == "42 43"
    assert deebert["dev %"] == "90.5 ± 0.7"
    assert deebert["x INT8"] == ""


def test_differences_inside_the_spread_are_marked(folder: Path):
    rows = rows_of(folder)
    assert rows["pabee", "no exits"]["below the best, points"] == "0.0"
    assert rows["pabee", "entropy 0.2"]["below the best, points"] == "0.0"
    # 1.5 points, where the deviations together come to 2.1.
    assert rows["deebert", "entropy 0.2"]["below the best, points"] == "1.5 (inside the spread)"
    for seed, dev in ((42, 0.88), (43, 0.90)):
        add(folder, early(f"r{seed}", dev=dev, recipe=INT8, checkpoint=seeded(seed, "romebert")))
    assert rows_of(folder)["romebert", "entropy 0.2"]["below the best, points"] == "3.0"


def test_a_figure_that_a_seed_lacks_is_left_empty(folder: Path):
    shared: dict[str, Any] = {"recipe": INT8, "checkpoint": seeded(46)}
    add(folder, early("p46", dev=0.92, session="p46", **shared), 2.0)
    found = rows_of(folder)["pabee", "entropy 0.2"]
    assert (found["seeds"], found["x INT8"]) == ("42 43 44 46", "")


def test_a_table_only_where_a_setting_has_several_seeds(tmp_path: Path):
    add(tmp_path, early("a", checkpoint=seeded(42)))
    add(tmp_path, early("b", checkpoint=seeded(43, "deebert")))
    assert seeds_table(apply_floor(load_runs(tmp_path))).rows == []


def test_the_console_shows_them(folder: Path):
    runs = apply_floor(load_runs(folder))
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    tables.print_tables(console, runs, choose(runs), [seeds_table(runs)])
    assert "92.0 ± 2.0" in console.export_text()


def test_settings_are_named_by_what_tells_them_apart():
    methods = [
        {"pooling": "mean", "pooler": "shared", "distillation": None},
        {"pooling": "mean", "pooler": "per_exit", "distillation": None},
        {"pooling": "mean", "pooler": "shared", "distillation": {"weight": 0.5}},
    ]
    infos = [seeded(42, method_options=options) for options in methods]
    infos += [seeded(42, "deebert"), seeded(43, "deebert"), seeded(42, "fastbert", train={"epochs": 1.0})]
    infos += [seeded(42, "fastbert", train={"epochs": 2.0})]
    records = [record(str(i), checkpoint=info) for i, info in enumerate(infos)]
    labels = ["pabee(shared)", "pabee(per_exit)", "pabee(shared, distillation.weight=0.5)"]
    fastbert = ["fastbert(epochs=1.0)", "fastbert(epochs=2.0)"]
    assert list(setting_labels(records).values()) == [*labels, "deebert", "deebert", *fastbert]
    assert list(model_labels(records).values()) == [*labels, "deebert, seed 42", "deebert, seed 43", *fastbert]


def test_a_setting_is_told_by_the_first_options_that_suffice():
    best = {"pooling": "attention", "pooler": "per_exit", "distillation": {"weight": 0.5}}
    paper = {"pooling": "first_token", "pooler": "shared", "distillation": None}
    given = [(best, "models/minilm"), (paper, "models/minilm"), (best, "models/minilm-4")]
    infos = [checkpoint(backbone=backbone, method_options=options) for options, backbone in given]
    records = [record(str(i), checkpoint=info) for i, info in enumerate(infos)]
    labels = ["pabee minilm(attention)", "pabee minilm(first_token)", "pabee minilm-4"]
    assert list(setting_labels(records).values()) == labels


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=9))
def test_spread(values: list[float]):
    found = spread(values)
    assert found.mean == pytest.approx(statistics.mean(values), abs=1e-12)
    assert found.deviation == pytest.approx(statistics.stdev(values), abs=1e-9)
    assert found.holds(found)


def test_what_a_spread_holds():
    assert spread([0.5]) == Spread(0.5, None)
    assert Spread(0.9, 0.03).holds(Spread(0.949, 0.04))
    assert not Spread(0.9, 0.03).holds(Spread(0.951, 0.04))
    assert Spread(0.9, 0.03).holds(Spread(0.929, None))
    assert not Spread(0.9, 0.03).holds(Spread(0.931, None))
    assert not Spread(0.9, None).holds(Spread(0.9, None)), "one seed each: nothing is known of noise"
