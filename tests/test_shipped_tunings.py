"""Every tuning file that comes with ExitBench, at toy size: from training to the artefact."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

import benchmarks.runner as runner
from benchmarks.__main__ import main
from benchmarks.records import read_records, read_trials
from benchmarks.tuning import SMOKE_TRIALS, read_tuning
from quant.artefact import EarlyExitModel
from tests.test_shipped_suites import location
from tests.workers import ThreadWorker

ROOT = Path(__file__).resolve().parent.parent
TUNINGS = sorted((ROOT / "yaml_configs" / "tuning").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _as_a_user(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    # Processes take longer to start than toy networks to run; tests/test_runner.py has real ones.
    monkeypatch.setattr(runner, "Worker", ThreadWorker)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("path", TUNINGS, ids=lambda path: path.stem)
def test_tuning_runs_to_its_end(
    path: Path, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
):
    tuning = read_tuning(path)
    assert tuning.model.name == path.stem
    assert tuning.early_exit.truncated  # early exit is only chosen where fewer layers are a candidate too
    needs = location([tuning.model.task], tuning.model.checkpoints, request)
    output = tmp_path / "output"
    code = main(["tune", str(path), "--smoke", "--output", str(output), "--checkpoints", str(tmp_path / "ck"), *needs])
    printed = capsys.readouterr().out
    assert code == (0 if "\nPASS: " in printed else 1), printed
    trials = read_trials(output)
    assert [(trial.number, trial.error) for trial in trials] == [(n, None) for n in range(SMOKE_TRIALS + 1)]
    assert [record.error for record in read_records(output / "winner") if record.status != "ok"] == []
    assert len(EarlyExitModel.load(output / "artefact").predict(["the acting was superb ."]).scores) == 1
