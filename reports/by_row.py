"""What follows from the answers to each dev row: intervals, the change from float32, what choosing exits is worth."""

from benchmarks.recordings import Recording
from benchmarks.records import RunRecord
from benchmarks.statistics import percentile_interval, rank_correlation_interval, score_draws
from reports.answers import Answers, Difference, difference
from reports.baselines import find_float32
from reports.columns import Row
from reports.hindsight import random_exits

# Where all rows leave at one exit, all deals are alike, and equal to the run but for the order of sums.
ROUNDING = 1e-9


def by_row_fields(
    rows: list[Row], records: dict[str, RunRecord], answers: dict[str, Answers], recordings: dict[str, Recording]
) -> dict[str, Row]:
    """run_id -> further fields of its row, for runs that have answers."""
    float32 = find_float32(list(records.values()), answers)
    found = {}
    for row in rows:
        run_id = row["run_id"]
        given, recording = answers.get(run_id), recordings.get(records[run_id].recording or "")
        if given is None or row["dev_score"] is None:
            continue
        fields = {} if row["metric"] == "accuracy" else _score_interval(row, given)
        if float32.get(run_id, run_id) != run_id:
            network = float32[run_id]
            fields |= change_fields("float32_change", difference(row["metric"], answers[network], given))
            fields["float32_change_over"] = network
        if row["role"] == "early exit":
            fields |= _grades(given)
            fields |= {} if recording is None else _random_exits(row, given, recording, records[run_id].exits)
        found[run_id] = fields
    return found


def change_fields(name: str, found: Difference | None) -> Row:
    """A difference of scores as five fields of a row."""
    values = [None] * 5 if found is None else [*found.interval, found.p, found.is_noise]
    return dict(zip([name, *(f"{name}_{what}" for what in ("low", "high", "p", "noise"))], values, strict=True))


def _score_interval(row: Row, given: Answers) -> Row:
    """Of metrics that are no share of rows; those have theirs without the rows."""
    found = percentile_interval(row["dev_score"], score_draws(row["metric"], given.labels, [given.predictions])[0])
    return {"dev_score_low": found.low, "dev_score_high": found.high}


def _random_exits(row: Row, given: Answers, recording: Recording, exits: list[int]) -> Row:
    found = random_exits(row["metric"], given, recording.of("dev", exits), exits)
    worth = row["dev_score"] - found.estimate
    return {
        "random_exits_score": found.estimate,
        "random_exits_low": found.low,
        "random_exits_high": found.high,
        "choice_worth": worth,
        "choice_worth_noise": abs(worth) <= found.high - found.estimate + ROUNDING,
    }


def _grades(given: Answers) -> Row:
    """Do harder rows stay longer? Only where rows carry a grade."""
    if given.grades is None:
        return {}
    found = rank_correlation_interval(given.lengths, given.grades, given.exit_layers)
    name = "grade_exit_correlation"
    return {name: found.estimate, f"{name}_low": found.low, f"{name}_high": found.high}
