"""Gates: planted regressions are caught or refused, and what did not change passes."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.records import RECORDS
from benchmarks.statistics import Interval, ratio_interval
from models.config import UserError
from reports.__main__ import main
from reports.gate import judge, read_gate
from reports.gate_baseline import accept, init, read_baseline
from reports.rules import ExitShift, Judged, ScoreDrop, ScoreFloor, SpeedupDrop
from reports.summaries import Summary
from tests.fake_runs import add_examples, add_timings
from tests.measured import BATCHES, EARLY, FEWER, LOADED, MACHINE, REPEATS, WHOLE, measure

ROOT = Path(__file__).resolve().parent.parent
GATES = sorted((ROOT / "yaml_configs" / "gates").glob("*.yaml"))
RULES = [
    {"kind": "records"},
    {"kind": "score_drop", "at_most": 0.01},
    {"kind": "mean_layer_change", "at_most": 0.2},
    {"kind": "exit_shift", "at_most": 0.3},
    {"kind": "speedup_drop", "at_most": 0.1},
    {"kind": "size_growth", "at_most": 0.05},
]
OTHER_MACHINE = {"environment": MACHINE | {"cpu": "Slow CPU", "kernel_flags": ["avx2"]}}


def write_gate(folder: Path, rules: list[dict], **changes) -> Path:
    path = folder / "gate.yaml"
    raw = {"schema": "exitbench/gate/1", "name": "planted", "baseline": "gate.json", "rules": rules} | changes
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A gate with `RULES` and its baseline."""
    path = write_gate(tmp_path, RULES)
    init(path, measure(tmp_path / "first"))
    return path


def said(gate: Path, folder: Path, capsys: pytest.CaptureFixture, *more: str) -> tuple[int, list[str]]:
    """Exit code, and the printed lines that did not pass."""
    code = main(["gate", str(gate), str(folder), *more])
    return code, capsys.readouterr().out.splitlines()


PLANTED = {
    "accuracy down 3 points": (
        {"lost": 30},
        1,
        [
            f"FAILED score_drop: {EARLY}: accuracy on dev went from 0.9000 to 0.8700, by -0.0300"
            r" \(95 % interval -0.04\d+ to -0.01\d+\); a drop of 0.01 is allowed"
        ],
    ),
    "exits one layer later at equal accuracy": (
        {"later": 1},
        1,
        [
            f"FAILED mean_layer_change: {EARLY}: mean exit layer went from 2.00 to 2.90, by \\+0.90 layers; .*",
            f"FAILED exit_shift: {EARLY}: exits moved by 0.90 layers .*from .*400, 300, 200, 100.* 0.3 is allowed",
        ],
    ),
    "20 % slower": (
        {"slower": 1.2},
        1,
        [
            f"FAILED speedup_drop: {EARLY}: speed-up over no_exit went from [12]\\.\\d+ to 1.6\\d, by -1\\d.\\d %"
            r" \(95 % interval -\d+.\d to -1\d.\d\); a drop of 10 % is allowed"
        ],
    ),
    "a record missing": (
        {"without": FEWER},
        1,
        [f"FAILED records: {FEWER}: there is no record, but the baseline has this case"],
    ),
    "a record INVALID": (
        {"differing": 3},
        2,
        [f"INVALID records: {EARLY}: the record is INVALID: 3 of 128 timed rows left elsewhere .*"],
    ),
    "another machine": (
        OTHER_MACHINE,
        2,
        [
            f"INVALID speedup_drop: {case}: speed-up over no_exit cannot be compared with the baseline's: another"
            r" machine \(Slow CPU, 2 cores, avx2, 2 threads; was Fast CPU, 2 cores, avx2 avx512_vnni, 2 threads\)"
            for case in (EARLY, FEWER)
        ],
    ),
    "a loaded machine": (
        {"conditions": LOADED},
        2,
        [
            f"INVALID speedup_drop: {case}: speed-up over no_exit cannot be compared with the baseline's: INVALID:"
            " load: other processes took 50 % of the processors' time"
            for case in (EARLY, FEWER)
        ],
    ),
    "other data": (
        {"data_hash": "0ther"},
        2,
        [
            rf"INVALID {rule}: {case}: .* cannot be compared with the baseline's: other data \(hash 0ther, was da7a\)"
            for rule in ("score_drop", "mean_layer_change", "exit_shift", "speedup_drop")
            for case in (EARLY, FEWER, WHOLE)
            if (rule, case) != ("speedup_drop", WHOLE)  # it is its own baseline
        ],
    ),
    "10 % larger": (
        {"size_bytes": 99_000_000},
        1,
        [
            f"FAILED size_growth: {case}: size went from 90000000 to 99000000 bytes, by \\+10.0 %; .*5 % is allowed"
            for case in (EARLY, FEWER, WHOLE)
        ],
    ),
    "no size": (
        {"size_bytes": None},
        2,
        [f"INVALID size_growth: {case}: has no size, but the baseline's run has" for case in (EARLY, FEWER, WHOLE)],
    ),
    "failed": (
        {"status": "error", "error": "no g++\n found"},
        1,
        [f"FAILED records: {case}: the run failed: no g\\+\\+ found" for case in (EARLY, FEWER, WHOLE)],
    ),
}


@pytest.mark.parametrize(("planted", "code", "expected"), PLANTED.values(), ids=PLANTED)
def test_planted_regressions(gate: Path, tmp_path: Path, capsys, planted: dict, code: int, expected: list[str]):
    folder = tmp_path / "now"
    measure(folder, noise=1, **planted)
    found, lines = said(gate, folder, capsys)
    assert found == code
    *bad, verdict = lines
    assert len(bad) == len(expected), bad
    for line, pattern in zip(bad, expected, strict=True):
        assert re.fullmatch(pattern, line), line
    assert verdict.startswith({1: "Gate planted FAILED: ", 2: "Gate planted is INVALID: "}[code])


def test_what_did_not_change_passes(gate: Path, tmp_path: Path, capsys):
    assert said(gate, measure(tmp_path / "now", noise=1), capsys) == (
        0,
        ["Gate planted passed: 17 checks passed, 0 failed, 0 INVALID"],
    )


def test_a_failure_outranks_what_cannot_be_judged(gate: Path, tmp_path: Path, capsys):
    code, lines = said(gate, measure(tmp_path / "now", lost=30, **OTHER_MACHINE), capsys)
    assert code == 1
    assert [line.split(":")[0] for line in lines[:-1]] == ["FAILED score_drop", *["INVALID speedup_drop"] * 2]


def test_ratios_cross_machines_with_a_tolerance_of_their_own(tmp_path: Path, capsys):
    path = write_gate(tmp_path, [{"kind": "speedup_drop", "at_most": 0.1, "across_machines": 0.3}])
    init(path, measure(tmp_path / "first"))
    assert said(path, measure(tmp_path / "slower", slower=1.2, **OTHER_MACHINE), capsys)[0] == 0
    assert said(path, measure(tmp_path / "slow", slower=1.8, **OTHER_MACHINE), capsys)[0] == 1
    assert said(path, measure(tmp_path / "here", slower=1.2), capsys)[0] == 1


def test_a_new_case_is_named_and_held_to_nothing(gate: Path, tmp_path: Path, capsys):
    raw = read_baseline(gate.with_suffix(".json"))
    cases = {case: run for case, run in raw.cases.items() if case != EARLY}
    smaller = raw.model_copy(update={"cases": cases})
    gate.with_suffix(".json").write_text(smaller.model_dump_json(by_alias=True))
    code, lines = said(gate, measure(tmp_path / "now", lost=500), capsys)
    assert (code, lines[0]) == (0, f"not in the baseline (`gate accept` adds it): {EARLY}")


def test_rules_select_by_pattern_and_need_no_baseline(tmp_path: Path, capsys):
    folder = measure(tmp_path / "now")
    floor = {"kind": "score_floor", "runs": "*/no-exits/*", "at_least": 0.88}
    path = write_gate(tmp_path, [floor], baseline=None)
    code, lines = said(path, folder, capsys)
    assert (code, lines[0]) == (
        1,
        f"FAILED score_floor: {FEWER}: accuracy on dev is 0.8500; at least 0.88 is asked",
    )
    code, lines = said(write_gate(tmp_path, [floor | {"at_least": 0.85}], baseline=None), folder, capsys)
    assert (code, lines) == (0, [lines[-1]])  # nothing is said of a baseline


def test_the_newest_run_of_a_case_counts(gate: Path, tmp_path: Path, capsys):
    folder = measure(tmp_path / "now", noise=1)
    old = measure(tmp_path / "old", lost=30, started_at="2025-01-01T00:00:00Z")
    lines = (old / RECORDS).read_text().replace(f'"run_id":"{EARLY}"', '"run_id":"old"')
    (folder / RECORDS).write_text((folder / RECORDS).read_text() + lines.splitlines()[0] + "\n")
    assert said(gate, folder, capsys)[0] == 0


def test_outputs_for_ci(gate: Path, tmp_path: Path, capsys):
    folder = measure(tmp_path / "now", lost=30)
    code, lines = said(gate, folder, capsys, "--output", str(tmp_path / "out"))
    assert code == 1
    suite = ElementTree.parse(tmp_path / "out" / "junit.xml").getroot()[0]
    assert (suite.attrib["tests"], suite.attrib["failures"], suite.attrib["errors"]) == ("17", "1", "0")
    (failed,) = [test for test in suite if len(test)]
    assert (failed.attrib, failed[0].tag) == ({"classname": "score_drop", "name": EARLY}, "failure")
    assert failed[0].attrib["message"] in lines[0]
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert summary.startswith(f"**{lines[-1]}**\n")
    assert "| score_drop | 2 | 1 | 0 |" in summary
    assert lines[0] in summary
    tracked = json.loads((tmp_path / "out" / "tracked.json").read_text())
    assert {"name": f"{EARLY}: accuracy", "unit": "accuracy", "value": 0.87} in tracked
    (ratio,) = [entry for entry in tracked if entry["name"] == f"{EARLY}: speed-up over no exit"]
    assert ratio["unit"] == "x"
    assert ratio["value"] == pytest.approx(2, rel=0.05)
    low, high = map(float, ratio["range"].split(" to "))
    assert low < ratio["value"] < high


def test_junit_survives_terminal_colours(gate: Path, tmp_path: Path, capsys):
    said(gate, measure(tmp_path / "now", status="error", error="\x1b[31mno <g++>\x00"), capsys)
    (error, *_) = ElementTree.parse(tmp_path / "now" / "gate" / "junit.xml").getroot().iter("failure")
    assert error.attrib["message"] == "the run failed: [31mno <g++>"


# Baselines


def test_init_writes_a_gate_that_its_runs_pass(tmp_path: Path, capsys):
    folder, path = measure(tmp_path / "first"), tmp_path / "ci" / "mine.yaml"
    assert main(["gate", "init", str(path), str(folder)]) == 0
    assert [(rule.kind, rule.runs) for rule in read_gate(path).rules] == [(rule["kind"], "*") for rule in RULES]
    assert said(path, folder, capsys)[0] == 0
    baseline = read_baseline(path.with_suffix(".json"))
    assert list(baseline.cases) == [EARLY, FEWER, WHOLE]
    assert [(entry.reason, entry.revisions) for entry in baseline.history] == [("the first baseline", ["abc123"])]
    assert path.with_suffix(".json").stat().st_size < 3 * 1200


def test_init_sets_no_limit_that_the_runs_cannot_tell(tmp_path: Path):
    """Where repeats disagree by a fifth, a tenth is not asked for."""
    folder = measure(tmp_path / "first")
    seconds = 0.002 * np.random.default_rng(0).normal(1, 0.01, (4, 8)) * np.array([[0.97], [1.09], [0.91], [1.03]])
    add_timings(folder, EARLY, seconds)
    add_timings(folder, WHOLE, seconds[::-1])
    init(tmp_path / "noisy.yaml", folder)
    (drop,) = [rule for rule in read_gate(tmp_path / "noisy.yaml").rules if isinstance(rule, SpeedupDrop)]
    assert 0.15 <= drop.at_most <= 0.25


def test_a_refused_init_leaves_no_gate_behind(tmp_path: Path, capsys):
    folder, path = measure(tmp_path / "first", status="error", error="no g++"), tmp_path / "mine.yaml"
    assert main(["gate", "init", str(path), str(folder)]) == 2
    assert "cannot be the baseline" in capsys.readouterr().err
    assert not path.exists()


def test_init_leaves_a_baseline_alone(gate: Path, tmp_path: Path, capsys):
    assert main(["gate", "init", str(gate), str(tmp_path / "first")]) == 2
    assert re.fullmatch(r"Error: '.*gate\.json' exists; `gate accept --reason TEXT` .*\n", capsys.readouterr().err)


def test_accept_replaces_the_baseline_and_keeps_why(gate: Path, tmp_path: Path, capsys):
    folder = measure(tmp_path / "now", lost=30, slower=1.5)
    assert said(gate, folder, capsys)[0] == 1
    assert main(["gate", "accept", str(gate), str(folder), "--reason", "smaller vocabulary"]) == 0
    capsys.readouterr()
    assert said(gate, folder, capsys)[0] == 0
    history = read_baseline(gate.with_suffix(".json")).history
    assert [entry.reason for entry in history] == ["the first baseline", "smaller vocabulary"]


def test_a_baseline_is_one_line_a_case(gate: Path):
    lines = gate.with_suffix(".json").read_text().splitlines()
    assert [line.split('"')[1] for line in lines if '"task"' in line] == [EARLY, FEWER, WHOLE]


@pytest.mark.parametrize(
    ("planted", "complaint"),
    [
        ({"status": "error", "error": "no g++"}, "the run failed: no g++ (2 more)"),
        ({"differing": 3}, "the record is INVALID: 3 of 128 timed rows"),
        ({"conditions": LOADED}, "cannot be compared with the baseline's: INVALID: load: other processes took 50 %"),
    ],
    ids=["failed", "INVALID", "loaded"],
)
def test_unsound_runs_are_no_baseline(gate: Path, tmp_path: Path, planted: dict, complaint: str):
    before = gate.with_suffix(".json").read_bytes()
    with pytest.raises(UserError, match="cannot be the baseline") as raised:
        accept(gate, measure(tmp_path / "now", **planted), "why not")
    assert complaint in str(raised.value)
    assert gate.with_suffix(".json").read_bytes() == before


# What cannot be used


@pytest.mark.parametrize(
    ("rules", "complaint"),
    [
        ([{"kind": "records", "runs": "*/nowhere/*"}], "rules.0: records of runs '*/nowhere/*' matches no run"),
        ([{"kind": "score_floor", "metric": "f1", "at_least": 0.5}], "finds nothing to judge in the 3 runs"),
        ([{"kind": "score_drop", "at_most": -1}], "rules.0.score_drop.at_most: input should be greater than or equal"),
        ([{"kind": "score_dorp", "at_most": 1}], "unknown kind 'score_dorp'"),
        ([{"kind": "exit_shift", "at_least": 1}], "unknown key 'at_least'; allowed: runs, kind, at_most"),
        ([], "rules: list should have at least 1 item"),
    ],
)
def test_unusable_gates(gate: Path, tmp_path: Path, capsys, rules: list[dict], complaint: str):
    write_gate(tmp_path, rules)
    assert main(["gate", str(gate), str(tmp_path / "first")]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda path: path.unlink(), "cannot be read (No such file or directory); `gate init` writes one"),
        (lambda path: path.write_text("{"), "top level: invalid JSON"),
        (lambda path: path.write_text(path.read_text().replace("baseline/1", "baseline/2")), "schema: input should be"),
        (
            lambda path: path.write_text(re.sub('"right":"....', '"right":"', path.read_text(), count=1)),
            "right: does not hold one bit for each of 1000 dev rows",
        ),
    ],
    ids=["missing", "cut off", "other version", "cut bits"],
)
def test_damaged_baselines(gate: Path, tmp_path: Path, capsys, damage, complaint: str):
    damage(gate.with_suffix(".json"))
    assert main(["gate", str(gate), str(tmp_path / "first")]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


def test_predictions_that_do_not_fit_their_record_are_one_line(gate: Path, tmp_path: Path, capsys):
    folder = measure(tmp_path / "now")
    add_examples(folder, EARLY, np.ones(999, bool), np.ones(999, np.int64))
    assert main(["gate", str(gate), str(folder)]) == 2
    assert "examples.parquet' holds 999 rows, but 1000 left; run the suite again\n" in capsys.readouterr().err


def test_other_mistakes_are_one_line(gate: Path, tmp_path: Path, capsys):
    folder = tmp_path / "first"
    assert main(["gate", "yaml_configs/gates/defualt_smoke.yaml", str(folder)]) == 2
    assert "did you mean 'yaml_configs/gates/default_smoke.yaml'?" in capsys.readouterr().err
    assert main(["gate", "accept", str(gate), str(folder), "--reason", " "]) == 2
    assert "--reason is empty" in capsys.readouterr().err
    assert main(["gate", "init", str(write_gate(tmp_path, RULES, baseline=None)), str(folder)]) == 2
    assert "baseline: is required here" in capsys.readouterr().err
    assert main(["gate", str(write_gate(tmp_path, RULES)), str(folder), "--output", "/dev/null/out"]) == 2
    assert "cannot write '/dev/null/out/junit.xml'" in capsys.readouterr().err


# Arithmetic


def summary(right: int = 0, rows: int = 1, **changes) -> Summary:
    given = {"task": "sst2", "metric": "accuracy", "data_hash": "da7a", "machine": "Fast CPU"}
    given |= {"scores": {"dev": {"accuracy": right / rows}}, "exit_counts": {"dev": [rows, 0]}}
    return Summary(**(given | changes))


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n))))
def test_a_drop_of_just_what_is_allowed_passes(drawn: tuple[int, int, int]):
    """Limits are inclusive, whatever floating point makes of 0.98 - 0.97; one row more is too many."""
    rows, *scores = drawn
    before, after = max(scores), min(scores)
    rule = ScoreDrop(kind="score_drop", at_most=(before - after) / rows)
    assert rule.judge(summary(before, rows), summary(after, rows)).outcome == "pass"
    if after:
        assert rule.judge(summary(before, rows), summary(after - 1, rows)).outcome == "fail"
    floor = ScoreFloor(kind="score_floor", at_least=after / rows)
    assert floor.judge(None, summary(after, rows)).outcome == "pass"


def test_relative_drops_are_shares_of_the_baseline():
    rule = ScoreDrop(kind="score_drop", at_most=0.1, relative=True)
    assert rule.judge(summary(50, 100), summary(45, 100)).outcome == "pass"
    assert rule.judge(summary(50, 100), summary(44, 100)).outcome == "fail"
    assert rule.judge(summary(-50, 100), summary(-55, 100)).outcome == "pass"  # a correlation may be negative


def test_another_depth_is_refused():
    deeper = summary(exit_counts={"dev": [1, 0, 0]})
    found = ExitShift(kind="exit_shift", at_most=1).judge(summary(), deeper)
    assert found == Judged(
        "invalid", "exit counts cannot be compared with the baseline's: another depth (3 layers, were 2)"
    )


def speedups(estimate: float, noise: float) -> Summary:
    return summary(speedups={"no_exit": Interval(estimate, estimate / (1 + noise), estimate * (1 + noise))})


@pytest.mark.parametrize(
    ("was", "found", "noise", "outcome"),
    [
        (2.0, 2.0, 0.02, "pass"),
        (2.0, 1.85, 0.02, "pass"),
        (2.0, 1.79, 0.02, "invalid"),
        (2.0, 3.0, 0.02, "pass"),
        (2.0, 1.7, 0.02, "fail"),
        (2.0, 1.7, 0.10, "invalid"),  # beyond the limit, but by noise, perhaps
        (2.0, 2.0, 0.25, "invalid"),  # a drop of a fifth would look the same
        (2.0, 1.0, 0.25, "fail"),  # too much for noise
    ],
)
def test_a_ratio_is_judged_by_its_interval(was: float, found: float, noise: float, outcome: str):
    rule = SpeedupDrop(kind="speedup_drop", at_most=0.1)
    assert rule.judge(speedups(was, noise), speedups(found, noise)).outcome == outcome


def retimed(draw: np.random.Generator, slower: float = 1.0) -> Summary:
    """A program and its baseline, timed anew: every batch, repeat and session has noise of its own."""
    costs = np.random.default_rng(0).lognormal(0, 0.3, BATCHES)
    noise = draw.normal(1, 0.05, (2, REPEATS, BATCHES)) * draw.normal(1, 0.03, (2, REPEATS, 1))
    noise *= draw.normal(1, 0.01, (2, 1, 1))
    return summary(speedups={"no_exit": ratio_interval(2 * costs * noise[0], slower * costs * noise[1])})


def test_false_alarms_of_the_ratio_rule(capsys):
    """What each of 500 re-timings of one checkpoint, and of one 20 % slower, would be called."""
    rule, draw = SpeedupDrop(kind="speedup_drop", at_most=0.1), np.random.default_rng(11)
    called = {
        slower: [rule.judge(retimed(draw), retimed(draw, slower)).outcome for _ in range(500)] for slower in (1.0, 1.2)
    }
    rates = {
        slower: {outcome: found.count(outcome) / 500 for outcome in ("pass", "fail", "invalid")}
        for slower, found in called.items()
    }
    with capsys.disabled():
        print(f"\nspeedup_drop, at_most 0.1, of 500 re-timings: the same {rates[1.0]}, 20 % slower {rates[1.2]}")
    assert called[1.0][:20] == ["pass"] * 20
    assert rates[1.0]["fail"] == 0
    assert rates[1.0]["pass"] >= 0.98
    assert rates[1.2]["pass"] <= 0.05


# What is shipped


@pytest.mark.parametrize("path", GATES, ids=lambda path: path.stem)
def test_shipped_gates_pass_against_themselves(path: Path):
    gate = read_gate(path)
    assert gate.name == path.stem
    cases = read_baseline(path.parent / gate.baseline).cases
    assert judge(gate, cases, cases).code == 0


def test_the_gate_of_the_smoke_run_holds_no_time(tmp_path: Path):
    """It must hold on any machine: seconds and ratios of a toy run do not."""
    gate = read_gate(ROOT / "yaml_configs" / "gates" / "default_smoke.yaml")
    assert {rule.kind for rule in gate.rules} == {"records", "exit_shift", "size_growth"}
