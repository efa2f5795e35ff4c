"""Tuning files, and one small search for real."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import benchmarks.runner as runner
from benchmarks.__main__ import main
from benchmarks.expansion import expand
from benchmarks.records import TRIALS, TrialRecord, read_records, read_trials
from benchmarks.suite import layers_of, read_suite
from benchmarks.tuner import Outcome, relative, spec_of
from benchmarks.tuning import Tuning, read_tuning
from models.policies import Entropy
from quant.artefact import EarlyExitModel
from quant.export import Exported
from tests.tunings import EVERY_ROUTE, ON_ONNXRUNTIME, TINY, parse, write
from tests.workers import ThreadWorker


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    yield
    logging.disable(logging.NOTSET)


def test_a_file_says_what_is_searched():
    tuning = parse(quantization={"model_wise": {"rest": ["bfloat16", "float32"], "observer": "kl"}})
    assert tuning.quantization.axes() == {
        "calibration_rows": [4, 8],
        "rest": ["bfloat16", "float32"],
        "observer": ["kl"],
    }
    assert [dials[0].kind for dials in tuning.early_exit.by_kind()] == ["patience", "entropy"]
    assert tuning.early_exit.by_kind()[1] == [Entropy(threshold=t) for t in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)]
    assert tuning.metric == "accuracy"
    assert (tuning.shape.batch_size, tuning.shape.thread_count) == (1, 1)


def test_criterion_is_a_distance_from_the_reference():
    assert parse().tuning.accuracy_criterion.floor(0.9) == pytest.approx(0.85)
    relative_ = parse(tuning={"accuracy_criterion": {"relative": 0.1}}).tuning.accuracy_criterion
    assert relative_.floor(0.5) == pytest.approx(0.45)
    assert relative_.floor(-0.5) == pytest.approx(-0.55)


MISTAKES: list[tuple[dict[str, Any], str]] = [
    (
        {"tuning": {"accuracy_criterion": {"relative": 0.01, "absolute": 0.01}}},
        "give relative or absolute, and not both",
    ),
    ({"tuning": {"accuracy_criterion": {"higher_is_better": False, "relative": 0.1}}}, "should be True, found False"),
    (
        {"tuning": {"strategy": {"name": "bayesain"}}},
        "tuning.strategy.name: input should be 'basic', 'mse', 'bayesian', 'random'",
    ),
    ({"tuning": {"strategy": {"name": "bayesain"}}}, "did you mean 'bayesian'?"),
    ({"tuning": {"strategy": {"name": "mse_v2"}}}, "found 'mse_v2'"),
    (
        {"tuning": {"objective": "accuracy"}},
        "tuning.objective: input should be 'performance', 'p99', 'footprint' or 'modelsize'",
    ),
    (
        {"tuning": {"objective": "p99", "multi_objectives": {"objective": ["p99"]}}},
        "give objective or multi_objectives, and not both",
    ),
    ({"tuning": {"multi_objectives": {"objective": ["p99"], "weight": [1.0, 2.0]}}}, "one for each objective"),
    (
        {"model": TINY["model"] | {"framework": "onnxruntime"}},
        "model.framework: recipe int8_static runs on eager and inductor and openvino, not on onnxruntime",
    ),
    (
        {"model": TINY["model"] | {"framework": ["openvino", "onnxruntime"]}},
        "model.framework: recipe int8_static runs on eager and inductor and openvino, not on onnxruntime",
    ),
    (
        ON_ONNXRUNTIME | {"quantization": {"approach": list(EVERY_ROUTE["quantization"]["approach"])}},
        "quantization.approach: recipe int8_static runs on eager and inductor and openvino, not on onnxruntime",
    ),
    ({"model": TINY["model"] | {"framework": ["openvino", "tensorrt"]}}, "found 'tensorrt'"),
    (
        EVERY_ROUTE | {"quantization": {"approach": ["post_training_dynamic_quant"], "model_wise": {"observer": "kl"}}},
        "int8_dynamic: top level: unknown key 'calibration_rows'",
    ),
    ({"tuning": {"exit_policy": {"max_trails": 3}}}, "unknown key 'max_trails'; allowed: timeout, max_trials"),
    ({"tuning": {"exit_policy": {"max_trials": 0}}}, "tuning.exit_policy.max_trials: input should be greater"),
    ({"device": "gpu"}, "device: input should be 'cpu', found 'gpu'"),
    ({"quantization": {"approach": "quant_aware_training"}}, "found 'quant_aware_training'"),
    ({"quantization": {"calibration": {"sampling_size": [0]}}}, "sampling_size.0: input should be greater"),
    (
        {"quantization": {"model_wise": {"activation": {"algorithm": "kll"}}}},
        "observer: input should be 'minmax' or 'kl'",
    ),
    ({"quantization": {"model_wise": {"activation": {"algo": "kl"}}}}, "unknown option 'activation.algo'"),
    ({"quantization": {"model_wise": {"observers": "kl"}}}, "unknown key 'observers'"),
    ({"quantization": {"op_wise": {"layer_1": {"dtype": "fp16"}}}}, "input should be 'int8' or 'fp32', found 'fp16'"),
    ({"evaluation": {"accuracy": {"metric": "f1"}}}, "evaluation.accuracy: unknown metric 'f1'; allowed: accuracy"),
    (
        {"evaluation": {"performance": {"configs": {"num_of_instance": 0}}}},
        "num_of_instance: input should be greater than or equal to 1, found 0",
    ),
    ({"early_exit": {"exits": ["none"]}}, "are what truncated: true tries"),
    ({"early_exit": {"policies": [{"kind": "fixed", "layer": 2}]}}, "are what truncated: true tries"),
    ({"early_exit": {"policies": [], "truncated": False}}, "give policies:, or truncated: true"),
    (
        {
            "early_exit": {
                "policies": [{"kind": "patience", "patience": [1, 2]}, {"kind": "entropy", "threshold": "low"}]
            }
        },
        "early_exit.policies.1.threshold: input should be a valid number, found 'low'",
    ),
    (
        {"early_exit": {"policies": [{"kind": "entropy", "threshold": {"from": 0, "to": "x", "steps": 3}}]}},
        "found {'from'",
    ),
    ({"early_exit": {"exits": [[1, 3]]}}, "exits [1, 3] must ascend within 1..2"),
    ({"notes": "x"}, "unknown key 'notes'; allowed: schema, model"),
]


@pytest.mark.parametrize(("changes", "said"), MISTAKES, ids=[said for _, said in MISTAKES])
def test_mistakes_are_one_line(
    changes: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], searched: Path
):
    path = tmp_path / "tuning.yaml"
    content = yaml.safe_load(write(tmp_path).read_text())
    for section, update in changes.items():
        content[section] = content.get(section, {}) | update if isinstance(update, dict) else update
    path.write_text(yaml.safe_dump(content))
    command = ["tune", str(path), "--output", str(tmp_path / "o"), "--checkpoints", str(searched / "checkpoints")]
    assert main(command) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert said in printed.err


def test_missing_file_names_those_that_exist(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main(["tune", "yaml_configs/tuning/defualt.yaml", "--output", str(tmp_path)]) == 2
    assert "did you mean 'yaml_configs/tuning/default.yaml'?" in capsys.readouterr().err


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With `checkpoints`, a finished tuning in `output`, its winner in `saved_results`, its words in `printed`."""
    folder = tmp_path_factory.mktemp("searched")
    saved = ["--output_model", str(folder / "saved_results")]
    assert run_tiny(folder, folder / "output", folder / "printed", saved) in (0, 1)
    return folder


def run_tiny(folder: Path, output: Path, printed: Path, more: Sequence[str] = ()) -> int:
    objectives = {"multi_objectives": {"objective": ["performance", "footprint"]}}
    few = TINY["tuning"] | {"strategy": {"name": "exhaustive"}, "exit_policy": {"max_trials": 6}} | objectives
    numerics = EVERY_ROUTE["quantization"] | {"calibration": {"sampling_size": 4}, "model_wise": {}, "op_wise": {}}
    path = write(folder, model=EVERY_ROUTE["model"], tuning=few, quantization=numerics)
    command = ["tune", str(path), "--checkpoints", str(folder / "checkpoints"), "--output", str(output), *more]
    with pytest.MonkeyPatch.context() as patch, printed.open("w") as file:
        patch.setattr(runner, "Worker", ThreadWorker)
        patch.setattr("sys.stdout", file)
        return main(command)


def test_it_prints_as_lpot_does(searched: Path):
    lines = (searched / "printed").read_text().splitlines()
    assert sum(line.startswith("FP32 baseline is: [accuracy: 0.") for line in lines) == 1
    results = [line for line in lines if line.startswith("Tune ")]
    # Truncations and patience, by three routes each.
    assert [line.split(" result is: [accuracy: ")[0] for line in results] == [f"Tune {n}" for n in range(1, 7)]
    assert all(", Best tune result is: [accuracy: " in line for line in results)
    assert all("x INT8, footprint (MB): " in line for line in results if "not timed" not in line)
    verdicts = [line for line in lines if line.startswith(("PASS: accuracy on tune", "FAIL: accuracy on tune"))]
    assert len(verdicts) == 1
    assert sum(" won" in line for line in lines) == 1


def test_winner_can_be_made_again_and_served(searched: Path):
    output = searched / "output"
    trials = read_trials(output)
    tuning = read_tuning(searched / "tuning.yaml")
    outcome = Outcome(tuning, trials[0], trials[1:], _best(tuning, trials))
    winner = spec_of(tuning, outcome.best)
    suite = read_suite(output / "winner.yaml")
    cases = {run.case for run in expand(suite, suite.tasks[0], winner.checkpoint, layers_of(suite.checkpoints[0]))}
    measured = {record.case: record for record in read_records(output / "winner")}
    assert winner.case in cases
    assert [case for case in cases if "/no-exits/fixed-last/" in case]  # the whole network it must beat
    assert winner.case in measured
    assert {record.status for record in measured.values()} == {"ok"}
    whole = [record for record in measured.values() if not record.with_exits and record.exits == [2]]
    assert {record.recipe["kind"] for record in whole} == {"float32", "int8_static", winner.recipe.kind}
    trials_of = {trial.case for trial in trials if trial.with_exits and trial.engine["kind"] == "onnxruntime"}
    assert trials_of & measured.keys()  # the best early exit on every engine, whichever won
    served = EarlyExitModel.load(searched / "saved_results").predict(["the acting was superb ."])
    assert served.exit_layer[0] in winner.exits


def _best(tuning: Tuning, trials: list[TrialRecord]) -> TrialRecord:
    timed = [(relative(tuning, trial.timing), trial) for trial in trials[1:] if trial.timing is not None]
    return min(timed, key=lambda entry: entry[0])[1]


def test_resumed_when_finished_it_tries_nothing_again(searched: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.winner.export", lambda *given, engine: Exported(1.0, 1.0, 1.0, 1000, 2000))
    monkeypatch.setattr(
        "benchmarks.bench.open_workers", lambda *given, **options: pytest.fail("nothing is left to measure")
    )
    before = (searched / "output" / TRIALS).read_bytes()
    assert run_tiny(searched, searched / "output", searched / "again") in (0, 1)
    assert (searched / "output" / TRIALS).read_bytes() == before
    was = [line.split(" was:")[0] for line in (searched / "again").read_text().splitlines() if " was:" in line]
    assert was == [f"Tune {n}" for n in range(1, 7)]
