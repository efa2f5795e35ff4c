"""Comparing folders: what moved is shown, what did not is not, and what cannot be compared is refused with a reason."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.records import examples_path
from reports.__main__ import main
from reports.compare import Comparison, compare, read_folder
from tests.fake_runs import add, add_timings, checkpoint, early
from tests.measured import EARLY, FEWER, LOADED, MACHINE, ROWS, WHOLE, measure

OTHER_MACHINE = {"environment": MACHINE | {"cpu": "Slow CPU"}}


def compared(tmp_path: Path, **planted) -> dict[tuple[str, str], Comparison]:
    """(case, quantity) -> how a folder with `planted` compares with one without."""
    before, after = measure(tmp_path / "before"), measure(tmp_path / "after", noise=1, **planted)
    found = compare(read_folder(before), read_folder(after)).compared
    return {(comparison.case, comparison.quantity): comparison for comparison in found}


def moved(found: dict[tuple[str, str], Comparison]) -> set[tuple[str, str]]:
    return {key for key, comparison in found.items() if comparison.change is not None and comparison.change.moved}


def test_the_same_measured_twice_did_not_move(tmp_path: Path):
    found = compared(tmp_path)
    assert moved(found) == set()
    assert {comparison.refused for comparison in found.values()} == {None}
    assert set(found) == {
        *((case, quantity) for case in (EARLY, WHOLE, FEWER) for quantity in ("score", "exits", "latency")),
        *((case, "speed-up") for case in (EARLY, FEWER)),
    }


@pytest.mark.parametrize(
    ("planted", "quantities", "text"),
    [
        ({"lost": 30}, {"score"}, r"-0\.0300 \(-0\.04\d\d to -0\.01\d\d, paired by row\)"),
        ({"later": 1}, {"exits"}, r"\+0\.90 layers, Wasserstein-1 0\.90 \(by chance up to 0\.\d\d\)"),
        ({"slower": 1.2}, {"latency", "speed-up"}, r"[+-]\d+\.\d % \([+-]\d+\.\d to [+-]\d+\.\d\)"),
    ],
    ids=["score", "exits", "speed"],
)
def test_what_moved(tmp_path: Path, planted: dict, quantities: set[str], text: str):
    found = compared(tmp_path, **planted)
    assert moved(found) == {(EARLY, quantity) for quantity in quantities}
    for quantity in quantities:
        assert re.fullmatch(text, found[EARLY, quantity].change.text), found[EARLY, quantity]


def test_a_few_rows_are_noise(tmp_path: Path):
    assert moved(compared(tmp_path, lost=3)) == set()


def test_seconds_need_the_same_machine_and_ratios_do_not(tmp_path: Path):
    found = compared(tmp_path, slower=1.5, **OTHER_MACHINE)
    assert found[EARLY, "latency"].refused == (
        "another machine (Slow CPU, 2 cores, avx2 avx512_vnni, 2 threads;"
        " was Fast CPU, 2 cores, avx2 avx512_vnni, 2 threads)"
    )
    assert moved(found) == {(EARLY, "speed-up")}
    assert found[EARLY, "speed-up"].change.text.endswith(", another machine")
    assert found[EARLY, "score"].change is not None


def test_a_machine_that_was_not_recorded_is_not_the_same(tmp_path: Path):
    found = compared(tmp_path, environment={})
    assert found[WHOLE, "latency"].refused == "the machine was not recorded"


def test_exits_need_the_same_depth(tmp_path: Path):
    """A checkpoint given as a folder may change behind its name."""
    before, after = read_folder(measure(tmp_path / "before")), read_folder(measure(tmp_path / "after"))
    deeper = after.runs[EARLY].model_copy(update={"exit_counts": {"dev": [*after.runs[EARLY].exit_counts["dev"], 0]}})
    found = compare(before, after._replace(runs=after.runs | {EARLY: deeper})).compared
    (refused,) = [given.refused for given in found if (given.case, given.quantity) == (EARLY, "exits")]
    assert refused == "another depth (5 layers, were 4)"


def test_all_need_the_same_data(tmp_path: Path):
    found = compared(tmp_path, lost=30, later=1, data_hash="0ther")
    assert {comparison.refused for comparison in found.values()} == {"other data (hash 0ther, was da7a)"}


def test_rows_of_unequal_cost_do_not_hide_a_slower_program(tmp_path: Path):
    """The same rows are timed again, so that what they cost is no noise."""
    before, after = measure(tmp_path / "before"), measure(tmp_path / "after")
    draw = np.random.default_rng(5)
    costs = 0.002 * np.random.default_rng(0).lognormal(0, 1, 64)
    for folder, slower in ((before, 1), (after, 1.15)):
        add_timings(folder, EARLY, slower * costs * draw.normal(1, 0.03, (4, 64)))
    (latency,) = [c for c in compare(read_folder(before), read_folder(after)).moved if c.quantity == "latency"]
    assert latency.case == EARLY


def test_other_batches_are_refused(tmp_path: Path):
    before, after = measure(tmp_path / "before"), measure(tmp_path / "after")
    add_timings(after, EARLY, np.full((4, 16), 0.002), rows=8)
    found = compare(read_folder(before), read_folder(after)).compared
    assert Comparison(EARLY, "latency", refused="other batches were timed") in found


def test_unsound_runs_are_refused_whole(tmp_path: Path):
    found = compared(tmp_path, differing=2)
    assert [quantity for case, quantity in found if case == EARLY] == ["record"]
    assert found[EARLY, "record"].refused.startswith("INVALID: 2 of 128 timed rows")
    assert found[EARLY, "record"].refused.endswith(f"(in {tmp_path / 'after'})")


def test_of_a_loaded_machine_only_what_is_timed_is_refused(tmp_path: Path):
    found = compared(tmp_path, conditions=LOADED)
    reason = "INVALID: load: other processes took 50 % of the processors' time"
    for quantity in ("latency", "speed-up"):
        assert found[EARLY, quantity] == Comparison(EARLY, quantity, refused=reason)
    for quantity in ("score", "exits"):
        assert found[EARLY, quantity].refused is None


def test_without_predictions_scores_are_not_paired(tmp_path: Path):
    before, after = measure(tmp_path / "before"), measure(tmp_path / "after", lost=30)
    examples_path(after, EARLY).unlink()
    found = {(c.case, c.quantity): c for c in compare(read_folder(before), read_folder(after)).compared}
    change = found[EARLY, "score"].change
    assert re.fullmatch(r"-0\.0300 \(-0\.05\d+ to -0\.00\d+, not paired\)", change.text)


def test_other_metrics_are_told_not_judged(tmp_path: Path):
    scores = {"dev": {"f1": 0.5}}
    for name in ("a", "b"):
        add(tmp_path / name, early("x", headline_metric="f1", scores=scores), 2.0)
    found = compare(read_folder(tmp_path / "a"), read_folder(tmp_path / "b")).compared
    assert found[0] == Comparison(
        "case of x", "score", refused="f1 has no interval here; it went from 0.5000 to 0.5000"
    )


def test_another_checkpoint_is_told(tmp_path: Path):
    found = compared(tmp_path, lost=30, checkpoint=checkpoint(hash="0ther"))
    assert found[EARLY, "score"].change.text.endswith(", paired by row, another checkpoint)")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "160")
    folders = [
        measure(tmp_path / "a"),
        measure(tmp_path / "b", lost=30, without=FEWER),
        measure(tmp_path / "c", without=EARLY),
    ]
    written = ["--markdown", str(tmp_path / "out" / "compared.md"), "--json", str(tmp_path / "out" / "compared.json")]
    assert main(["compare", *map(str, folders), *written]) == 0
    out = capsys.readouterr().out
    for line in (
        f"{folders[1]} against {folders[0]}: 2 cases in both",
        "score: 2 compared, 1 moved beyond noise",
        f"only in {folders[0]}: {FEWER}",
        f"only in {folders[0]}: {EARLY}",
    ):
        assert line in out, line
    assert re.search(r"score +0\.9 +0\.87 +-0\.0300 \(.*paired by row\) +sst2", out)
    page = (tmp_path / "out" / "compared.md").read_text()
    assert re.search(rf"\| score \| 0\.9 \| 0\.87 \| -0\.0300 \(.*\) \| {EARLY} \|", page)
    assert page.count("## ") == 2
    first, second = json.loads((tmp_path / "out" / "compared.json").read_text())
    assert (first["only_before"], second["only_before"], first["only_after"]) == ([FEWER], [EARLY], [])
    (score,) = [c for c in first["compared"] if (c["case"], c["quantity"]) == (EARLY, "score")]
    assert (score["change"]["before"], score["change"]["after"], score["change"]["moved"]) == (0.9, 0.87, True)


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = measure(tmp_path / "a")
    other = measure(tmp_path / "b", without=EARLY)
    for case in (WHOLE, FEWER):
        text = (other / "records.jsonl").read_text()
        (other / "records.jsonl").write_text(text.replace(f'"case":"{case}"', f'"case":"other {case}"'))
    for arguments, complaint in (
        ([folder], "compare needs two folders or more"),
        ([folder, other], "have no case in common"),
        ([folder, tmp_path], "holds no records.jsonl"),
        ([folder, folder, "--tolerance", "-0.1"], "--tolerance is a share of at least 0, not -0.1"),
        ([folder, folder, "--json", "/dev/null/x"], "cannot write '/dev/null/x'"),
    ):
        assert main(["compare", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert complaint in error
        assert error.count("\n") == 1


def test_rows_are_the_same_thousand(tmp_path: Path):
    """The fake folder is what the tests say it is."""
    runs = read_folder(measure(tmp_path / "a", lost=30)).runs
    assert runs[EARLY].right_rows.sum() == ROWS - 130
    assert runs[EARLY].exit_counts == {"dev": [400, 300, 200, 100]}
