"""The loop of a tuning and what it serves, over a table of made-up figures."""

import itertools
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import benchmarks.runner as runner
from benchmarks.floors import FLOORS
from benchmarks.other_floors import at_other_floors
from benchmarks.records import TRIALS, Timing, TrialRecord, read_trials
from benchmarks.strategies import STRATEGIES, Space
from benchmarks.suite import RunSpec
from benchmarks.tuner import Outcome, meets, relative, spec_of, tune
from benchmarks.winner import beside
from benchmarks.worker import WorkerError
from models.config import UserError
from models.policies import Fixed
from quant.recipes import Float32
from tests.tunings import LAYERS, ROWS, TINY, Table, parse, search, table_space


@pytest.mark.parametrize(("criterion", "warned"), [({"relative": 0.01}, False), ({"relative": 0.5}, True)])
def test_a_criterion_that_one_class_for_every_row_keeps_is_warned_of(
    tmp_path: Path, criterion: dict[str, float], warned: bool
):
    space = table_space(parse(tuning=TINY["tuning"] | {"accuracy_criterion": criterion}))
    bench, said = Table(), []
    tune(space, bench, bench.labels, "identity", tmp_path, say=said.append)
    share = max(np.bincount(bench.labels)) / ROWS
    assert [f"{share:.4f}" in line for line in said if line.startswith("Warning")] == [True] * warned


def told(outcome: Outcome) -> list[dict[str, Any]]:
    """What a search came to, but for when and how long."""
    records = [outcome.baseline, *outcome.trials, outcome.best]
    return [record.model_dump(exclude={"trial_seconds", "started_at", "environment"}) for record in records]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return {name: search(folder / name, Table(), strategy={"name": name}) for name in STRATEGIES}


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(STRATEGIES)),
    kills=st.lists(st.integers(0, 20), max_size=3),
    torn=st.integers(0, 40),
)
def test_killed_and_resumed_is_as_undisturbed(undisturbed: dict[str, Outcome], name: str, kills: list[int], torn: int):
    with TemporaryDirectory() as folder:
        finished = 0
        for kill in kills:
            try:
                search(Path(folder), Table(kill), strategy={"name": name})
            except KeyboardInterrupt:
                found = read_trials(Path(folder))
                assert len(found) >= finished
                finished = len(found)
                if found:  # the kill may also come while a line is written
                    with (Path(folder) / TRIALS).open("ab") as file:
                        file.write(b'{"schema_version":"exitbench/trial/1","tuning":"identity"'[:torn])
        outcome = search(Path(folder), Table(), strategy={"name": name})
        assert told(outcome) == told(undisturbed[name])
        assert [trial.number for trial in read_trials(Path(folder))] == list(range(len(outcome.trials) + 1))


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_no_trial_is_repeated_and_the_floor_is_met(undisturbed: dict[str, Outcome], name: str):
    outcome = undisturbed[name]
    assert len({tuple(trial.choice) for trial in outcome.trials}) == len(outcome.trials) == 12
    assert outcome.trials[0].choice == [0, 0, 0, 0]
    assert outcome.passed
    assert outcome.baseline.score is not None
    for trial in outcome.trials:
        kept = trial.score is not None and trial.score >= outcome.baseline.score - 0.05
        assert (trial.timing is not None) == kept == meets(outcome.tuning, outcome.baseline, trial)
    within = [trial.timing for trial in outcome.trials if trial.timing is not None]
    assert outcome.best.timing is not None
    assert relative(outcome.tuning, outcome.best.timing) == min(relative(outcome.tuning, timing) for timing in within)


def test_exhaustive_finds_the_best_of_the_grid(tmp_path: Path):
    """Every point and every dial by brute force, timed or not."""
    bench = Table(noise=0.0)
    outcome = search(tmp_path, bench, strategy={"name": "exhaustive"}, exit_policy={"max_trials": 1000})
    space = table_space(outcome.tuning)
    points = list(itertools.product(*map(range, space.shape)))
    assert [tuple(trial.choice) for trial in outcome.trials] == points
    for trial in outcome.trials:
        scores = []
        for run in space.candidates(tuple(trial.choice)):
            logits = bench.record(run)
            answer = runner.replay_run(run, logits, range(1, len(logits) + 1))
            score = float(np.mean(answer.logits.argmax(-1) == bench.labels))
            if meets(outcome.tuning, outcome.baseline, trial.model_copy(update={"score": score})):
                scores.append((answer.exit_layer.mean(), -score, run.case))
        if scores:
            assert trial.case == min(scores)[2]
        else:
            assert trial.timing is None


def test_the_best_at_other_floors(tmp_path: Path):
    """By brute force over all that can be had in the winner's recipe."""
    bench = Table(noise=0.0)
    outcome = search(tmp_path, bench, strategy={"name": "exhaustive"}, exit_policy={"max_trials": 1000})
    space = table_space(outcome.tuning)
    found = []
    for network in range(len(space.networks)):
        for run in space.candidates((network, *outcome.best.choice[1:])):
            logits = bench.record(run)
            answer = runner.replay_run(run, logits, range(1, len(logits) + 1))
            score = float(np.mean(answer.logits.argmax(-1) == bench.labels))
            found.append((answer.exit_layer.mean(), len(run.exits), -score, run))
    assert outcome.baseline.score is not None
    expected = []
    for share in FLOORS:
        within = [one for one in found if -one[2] >= outcome.baseline.score * (1 - share)]
        for early in (True, False):
            rivals = [one for one in within if one[3].with_exits == early and (early or one[3].exits[-1] < LAYERS)]
            expected += [min(rivals, key=lambda one: one[:3])[3].case] if rivals else []
    given = [run.case for run in at_other_floors(space, bench, bench.labels, outcome)]
    assert given == expected
    assert len(set(given)) > 2  # other floors have other answers


def test_other_floors_hold_only_what_was_tried_with_exits(tmp_path: Path):
    bench = Table()
    outcome = search(tmp_path, bench, strategy={"name": "random"}, exit_policy={"max_trials": 4})
    space = table_space(outcome.tuning)
    recipe, engine = outcome.best.recipe, outcome.best.engine
    tried = {tuple(trial.exits) for trial in outcome.trials if (trial.recipe, trial.engine) == (recipe, engine)}
    runs = at_other_floors(space, bench, bench.labels, outcome)
    assert {run.exits for run in runs if run.with_exits} <= tried
    assert {(run.recipe.model_dump(), run.engine.model_dump()) == (recipe, engine) for run in runs} == {True}


def test_what_cannot_be_recorded_at_another_floor_is_no_rival(tmp_path: Path):
    """The search is over by then, and its winner stands."""
    outcome = search(tmp_path, Table(), strategy={"name": "exhaustive"}, exit_policy={"max_trials": 1000})

    class Unrecordable(Table):
        def record(self, run: RunSpec) -> np.ndarray:
            if not run.with_exits:
                raise WorkerError("no memory")
            return super().record(run)

    runs = at_other_floors(table_space(outcome.tuning), Unrecordable(), Table().labels, outcome)
    assert {run.with_exits for run in runs} == {True}


def test_what_the_winner_is_measured_beside(tmp_path: Path):
    peers = [{"recipe": "int8_native", "engine": "onnxruntime"}]
    tuning = parse(
        evaluation={"peers": peers},
        tuning=TINY["tuning"] | {"exit_policy": {"max_trials": 1000}, "strategy": {"name": "exhaustive"}},
    )
    networks = [
        network._replace(checkpoint=name) for name in ("ck", "other") for network in table_space(tuning).networks
    ]
    space = Space(tuning, networks, {"ck": LAYERS, "other": LAYERS})
    bench = Table()
    outcome = tune(space, bench, bench.labels, "identity", tmp_path, say=lambda line: None)
    winner = spec_of(tuning, outcome.best)
    fewer = space.without_exits("other", winner.recipe, winner.engine, layers=2)
    deeper = replace(fewer, exits=(3,), policy=Fixed(layer=3))
    runs = {run.case: run for run in beside(space, outcome, winner, [fewer, deeper])}
    best = {
        name: min(
            (relative(tuning, trial.timing), trial.case)
            for trial in outcome.trials
            if trial.checkpoint == name and trial.with_exits and trial.timing is not None
        )[1]
        for name in ("ck", "other")
    }
    assert {case for case, run in runs.items() if run.with_exits} == set(best.values())
    without = [
        (run.checkpoint, run.recipe.kind, run.engine.kind, run.exits) for run in runs.values() if not run.with_exits
    ]
    own, ours = winner.checkpoint, ("int8_static", "openvino")
    assert {(own, *ours, (LAYERS,)), ("other", *ours, (2,)), ("other", *ours, (3,))} <= set(without)
    assert {(own, "int8_native", "onnxruntime", (LAYERS,)), ("other", "int8_native", "onnxruntime", (2,))} <= set(
        without
    )
    assert outcome.baseline.case in runs
    assert space.anchor.case in runs


def test_mse_is_measured_over_the_logits_of_all_exits(undisturbed: dict[str, Outcome]):
    outcome, table = undisturbed["mse"], Table()
    for trial in outcome.trials:
        run = spec_of(outcome.tuning, trial)
        plain = table.record(replace(run, recipe=Float32()))
        assert trial.mse == pytest.approx(np.mean((table.record(run) - plain) ** 2))
    assert {trial.mse for trial in undisturbed["basic"].trials} == {None}


def test_objectives():
    timing = Timing(
        seconds=[1.0, 1.0, 2.0],
        anchor_seconds=[2.0, 2.0, 4.0],
        size_bytes=30,
        anchor_size_bytes=40,
        footprint_bytes=20,
        anchor_footprint_bytes=80,
    )
    assert relative(parse(), timing) == 0.5
    assert relative(parse(tuning={"objective": "modelsize"}), timing) == 0.75
    assert relative(parse(tuning={"objective": "footprint"}), timing) == 0.25
    assert relative(parse(tuning={"objective": "p99"}), timing) == pytest.approx(0.5)
    both = {"objective": ["performance", "modelsize"], "weight": [3.0, 1.0]}
    assert relative(parse(tuning={"multi_objectives": both}), timing) == pytest.approx((3 * 0.5 + 0.75) / 4)


@given(st.integers(0, 1), st.integers(0, 54), st.floats(40, 1e4))
def test_a_pause_of_the_machine_counts_on_neither_side(side: int, call: int, pause: float):
    """It falls on one side alone, and would make the other look fast."""
    seconds = np.ones((2, 55)) * [[1.0], [2.0]]
    seconds[side, call] += pause
    timing = Timing(seconds=list(seconds[0]), anchor_seconds=list(seconds[1]), size_bytes=None, anchor_size_bytes=None)
    assert relative(parse(), timing) == 0.5


def test_time_out_holds_over_sessions(tmp_path: Path):
    stop = {"timeout": 1000.0, "max_trials": 12}
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, Table(killed_at=6), strategy={"name": "random"}, exit_policy=stop)
    lines = (tmp_path / TRIALS).read_text().splitlines()
    spent = [TrialRecord.model_validate_json(line).model_copy(update={"trial_seconds": 400.0}) for line in lines]
    (tmp_path / TRIALS).write_text("".join(trial.model_dump_json() + "\n" for trial in spent))
    before = len(spent) - 1
    assert 1 <= before <= 2  # 400 or 800 s of 1000: it goes on
    resumed = search(tmp_path, Table(), strategy={"name": "random"}, exit_policy=stop)
    assert len(resumed.trials) == 12
    again = search(tmp_path, Table(), strategy={"name": "random"}, exit_policy={"timeout": 100.0, "max_trials": 50})
    assert len(again.trials) == 12


def test_time_out_0_stops_at_the_first_within_the_criterion(tmp_path: Path):
    outcome = search(tmp_path, Table(), exit_policy={"timeout": 0.0})
    assert [meets(outcome.tuning, outcome.baseline, trial) for trial in outcome.trials] == [
        *[False] * (len(outcome.trials) - 1),
        True,
    ]


class Hopeless(Table):
    """INT8 knows nothing."""

    def record(self, run: RunSpec) -> np.ndarray:
        logits = super().record(run)
        return logits if run.recipe.kind == "float32" else logits * np.random.default_rng(0).choice([-1, 1], (ROWS, 1))


def test_without_a_trial_within_the_criterion_the_best_score_fails(tmp_path: Path):
    bench = Hopeless()
    outcome = search(tmp_path, bench, strategy={"name": "random"})
    assert not outcome.passed
    assert len(bench.timed) == 1  # the float32 network alone
    assert outcome.best.score == max(trial.score or 0 for trial in outcome.trials)


def test_performance_only_times_what_is_below_the_criterion(tmp_path: Path):
    outcome = search(tmp_path, Hopeless(), exit_policy={"performance_only": True, "max_trials": 5})
    assert all(trial.timing is not None for trial in outcome.trials)
    assert not outcome.passed


class Broken(Table):
    """Some combinations cannot be built."""

    def time(self, run: RunSpec) -> Timing:
        if run.policy.kind == "patience":
            raise WorkerError("no such kernel")
        return super().time(run)


def test_failed_trials_are_records_and_never_win(tmp_path: Path):
    outcome = search(tmp_path, Broken(), strategy={"name": "exhaustive"}, exit_policy={"max_trials": 1000})
    failed = [trial for trial in outcome.trials if trial.error is not None]
    assert {trial.policy["kind"] for trial in failed} == {"patience"}
    assert {trial.error for trial in failed} == {"no such kernel"}
    assert outcome.best.error is None


def test_another_tuning_in_the_folder_is_refused(tmp_path: Path):
    search(tmp_path, Table())
    with pytest.raises(UserError, match="holds 13 trials: give another --output"):
        search(tmp_path, Table(), workspace={"resume": False})
    space = table_space(parse())
    with pytest.raises(UserError, match="trials of another tuning"):
        tune(space, Table(), Table().labels, "another", tmp_path, say=lambda line: None)
