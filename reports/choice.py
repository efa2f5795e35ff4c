"""The answer: the fastest configuration within a floor, chosen on `tune` and read once on `dev`.

Speed is measured on dev rows, without their labels; only scores could leak, and those are chosen by on `tune`.
A run that is INVALID, timing only or failed is never chosen.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

from benchmarks.floors import lowest_allowed
from benchmarks.statistics import Interval
from models.config import UserError
from reports.answers import Difference, difference
from reports.baselines import fastest, is_int8, timed_together
from reports.labels import WITHOUT_EXITS
from reports.runs import Row, Runs, speedup_fields
from reports.timings import comparable, speedup, speedup_by_sessions
from reports.trust import untrusted

RELATIVE_FLOOR = 0.01
KINDS = {
    "early exit": "best early exit",
    "truncated": "best truncated network",
    "int8": "fastest INT8 without exits",
    "float32": "fastest float32 without exits",
}

# What competes, by role, and its name in a sentence.
COMPETING = {"early exit": "early exit that a policy decides", "truncated": "truncated network"}


class Versus(NamedTuple):
    """A speed-up of one run over another. `by_sessions`: each was first divided by its own session's INT8 network."""

    ratio: Interval
    by_sessions: bool

    @property
    def cell(self) -> str:
        """As a table shows it: `1.20 (1.13 to 1.27)`."""
        how = " by sessions" if self.by_sessions else ""
        return f"{self.ratio.estimate:.2f} ({self.ratio.low:.2f} to {self.ratio.high:.2f}{how})"


@dataclass(frozen=True)
class Answer:
    """The fastest run of one kind.

    Attributes:
        within_floor: on tune; False for a peer none of whose kind keeps the floor.
        below_on_dev: on dev it scores below the same share of the reference: the choice did not carry over.
        change_from_truncated: of the dev score.
    """

    kind: str
    run: Row
    within_floor: bool
    below_on_dev: bool
    over_truncated: Versus | None = None
    change_from_truncated: Difference | None = None

    @property
    def name(self) -> str:
        """What the table of answers calls it: the fastest peer of all is only told where none keeps the floor."""
        kept = self.within_floor and self.kind not in COMPETING
        return f"{KINDS[self.kind]}{' within the floor' if kept else ''}"


@dataclass(frozen=True)
class Choice:
    """What to serve for one task and shape.

    Attributes:
        floor: lowest tune score allowed: `(1 - relative_floor)` of `reference`; None where there is no reference.
        reference: the float32 network without exits that scores best on tune, of all checkpoints, whole or not.
        answers: by kind, those of `KINDS` that were found.
        invalid: how many runs were left out because their score or their seconds are INVALID.
        missing: of the two that compete, what these runs do not hold at all.
        lost: of the two, those of which every run within the floor was left out so.
        timing_only: where rows leave is told and never decided, so nothing is chosen.
    """

    task: str
    shape: str
    relative_floor: float
    floor: float | None
    reference: Row | None
    answers: dict[str, Answer]
    invalid: int
    missing: list[str]
    lost: list[str]
    timing_only: bool

    @property
    def sentence(self) -> str:
        """Which wins, early exit or fewer layers, and by how much."""
        return _sentence(self)


def apply_floor(runs: Runs, relative_floor: float = RELATIVE_FLOOR) -> Runs:
    """Fill in what depends on the floor: `tune_floor`, `within_floor` and the speed-up over the best truncated network.

    Raises:
        UserError: the floor is not a share.
    """
    floored = _floored(runs, relative_floor)
    peers: dict[tuple[str, ...], list[str]] = {}
    for row in floored.rows:
        if row["role"] == "truncated" and row["within_floor"] and _eligible(row):
            peers.setdefault(timed_together(runs.records[row["run_id"]]), []).append(row["run_id"])
    rows = [row | _over_truncated(runs, row["run_id"], peers) for row in floored.rows]
    return runs._replace(rows=rows)


def choose(runs: Runs, relative_floor: float = RELATIVE_FLOOR) -> list[Choice]:
    """One choice for each task and shape, over all checkpoints.

    Raises:
        UserError: the floor is not a share.
    """
    floored = _floored(runs, relative_floor)
    choices = []
    for task, shape, rows in floored.groups():
        reference = _reference(rows)
        floor = None if reference is None else reference["tune_floor"]
        score = None if reference is None else reference["dev_score"]
        dev_floor = None if score is None else lowest_allowed(score, relative_floor)
        roles, lost_roles = ({row["role"] for row in some} for some in (rows, filter(_lost, rows)))
        timing_only = "timing only" in roles and "early exit" not in roles
        kinds = () if timing_only else KINDS
        answers = {kind: answer for kind in kinds if (answer := _answer(kind, rows, dev_floor)) is not None}
        if "truncated" in answers:
            fewer = answers["truncated"].run
            answers = {kind: _beside(answer, fewer, floored) for kind, answer in answers.items()}
        missing = [kind for kind in COMPETING if kind not in roles]
        lost = [kind for kind in COMPETING if kind not in answers and kind in lost_roles]
        invalid = sum(map(untrusted, rows))
        found = reference, answers, invalid, missing, lost, timing_only
        choices.append(Choice(task, shape, relative_floor, floor, *found))
    return choices


def versus(runs: Runs, candidate: Row, baseline: Row) -> Versus | None:
    """The speed-up of one run over another: direct within a session, else by sessions; None where neither can be.

    By sessions each is first divided by its own session's INT8 network without exits: the same one in both, as far as
    start, layers, recipe and engine tell. Of several, the fastest beside the candidate.
    """
    timed = [runs.timings[run["run_id"]] for run in (baseline, candidate)]
    if baseline["session"] == candidate["session"] and comparable(*timed):
        return Versus(speedup(*timed), by_sessions=False)
    of_baseline, of_candidate = (_anchors(runs, run) for run in (baseline, candidate))
    shared = {anchor: network for network, anchor in of_candidate.items() if network in of_baseline}
    if not shared:
        return None
    anchor = fastest([*shared], runs.timings)
    anchors = runs.timings[of_baseline[shared[anchor]]], runs.timings[anchor]
    return Versus(speedup_by_sessions(timed[0], anchors[0], timed[1], anchors[1]), by_sessions=True)


def _anchors(runs: Runs, run: Row) -> dict[tuple, str]:
    """What a whole INT8 network without exits is -> its run_id, of those timed with a run."""
    own, found = runs.records[run["run_id"]], {}
    for row in runs.rows:
        record = runs.records[row["run_id"]]
        if row["role"] != "no exits" or not is_int8(record) or timed_together(record) != timed_together(own):
            continue
        if row["run_id"] in runs.timings and comparable(runs.timings[row["run_id"]], runs.timings[run["run_id"]]):
            network = row["family"], row["backbone"], row["num_layers"], row["recipe"], row["engine"]
            found[network] = row["run_id"]
    return found


def _floored(runs: Runs, relative_floor: float) -> Runs:
    """Fill in `tune_floor` and `within_floor`."""
    if not 0 <= relative_floor < 1:
        raise UserError(f"the floor is a share of the float32 score, at least 0 and below 1, not {relative_floor}")
    rows = []
    for _, _, group in runs.groups():
        reference = _reference(group)
        floor = None if reference is None else lowest_allowed(reference["tune_score"], relative_floor)
        rows += [row | _within(row, floor) for row in group]
    return runs._replace(rows=rows)


def _eligible(row: Row) -> bool:
    scored = row["tune_score"] is not None and row["latency_s_per_example"] is not None
    return scored and not untrusted(row)


def _lost(row: Row) -> bool:
    return bool(row["within_floor"]) and untrusted(row)


def _within(row: Row, floor: float | None) -> Row:
    if floor is None or row["tune_score"] is None:
        return {"tune_floor": floor}
    return {"tune_floor": floor, "within_floor": row["tune_score"] >= floor}


def _over_truncated(runs: Runs, run_id: str, peers: dict[tuple[str, ...], list[str]]) -> Row:
    """The speed-up over the fastest truncated network within the floor, of the same session, checkpoint and shape."""
    timed = runs.timings.get(run_id)
    if timed is None:
        return {}
    near = peers.get(timed_together(runs.records[run_id]), [])
    near = [peer for peer in near if comparable(runs.timings[peer], timed)]
    return speedup_fields("best_truncated", fastest(near, runs.timings), runs.timings, timed) if near else {}


def _reference(rows: list[Row]) -> Row | None:
    without = [row for row in rows if row["role"] in WITHOUT_EXITS and row["recipe"].startswith("float32")]
    scored = [row for row in without if row["tune_score"] is not None]
    return max(scored, key=lambda row: row["tune_score"], default=None)


def _is(row: Row, kind: str) -> bool:
    if kind in {"int8", "float32"}:
        return row["role"] == "no exits" and row["recipe"].startswith(kind)
    return row["role"] == kind


def _answer(kind: str, rows: list[Row], dev_floor: float | None) -> Answer | None:
    """Within the floor where there is one; the two peers stand even below it, for they are what must be beaten."""
    candidates = [row for row in rows if _is(row, kind) and _eligible(row)]
    within = [row for row in candidates if row["within_floor"]]
    allowed = within or (candidates if kind in {"int8", "float32"} else [])
    if not allowed:
        return None
    run = min(allowed, key=lambda row: row["latency_s_per_example"])
    below = None not in (dev_floor, run["dev_score"]) and run["dev_score"] < dev_floor
    return Answer(kind, run, within_floor=bool(within), below_on_dev=below)


def _beside(answer: Answer, fewer: Row, runs: Runs) -> Answer:
    """Fill in how an answer compares with the best truncated network."""
    before, after = (runs.answers.get(run["run_id"]) for run in (fewer, answer.run))
    return replace(
        answer,
        over_truncated=versus(runs, answer.run, fewer),
        change_from_truncated=difference(answer.run["metric"], before, after),
    )


def _sentence(choice: Choice) -> str:
    if choice.timing_only:
        return "Timing only: where rows leave is told, not decided, so scores mean nothing and nothing is chosen."
    if choice.floor is None:
        return "No answer: there is no float32 network without exits to set the floor by."
    if choice.missing:
        return f"No answer: these runs hold no {' and no '.join(COMPETING[kind] for kind in choice.missing)}."
    if choice.lost:
        return f"No answer: every {' and every '.join(choice.lost)} run that keeps the floor is INVALID."
    early, fewer = choice.answers.get("early exit"), choice.answers.get("truncated")
    if early is None and fewer is None:
        return "Neither early exit nor a truncated network keeps the floor: serve a whole network."
    if early is None or fewer is None:
        return _only_one(early, fewer)
    if early.over_truncated is None:
        return "Undecided: early exit and the truncated network share neither a session nor an INT8 network to go by."
    scores = _dev_scores(early, fewer)
    return f"{_verdict(early.over_truncated)}, at {scores}.{_floor_remark(early, fewer)}{_peer_remark(early, fewer)}"


def _only_one(early: Answer | None, fewer: Answer | None) -> str:
    if early is not None:
        remarks = f"{_floor_remark(early)}{_peer_remark(early)}"
        return f"Early exit wins: no truncated network keeps the floor.{remarks}"
    remark = "" if fewer is None else f"{_floor_remark(fewer)}{_peer_remark(fewer)}"
    return f"Early exit loses, fewer layers win: no early-exit configuration keeps the floor.{remark}"


def _verdict(over: Versus) -> str:
    ratio, how = over.ratio, ", by sessions" if over.by_sessions else ""
    interval = f"(95 % interval {ratio.low:.2f} to {ratio.high:.2f}{how})"
    if ratio.low > 1:
        return f"Early exit wins: {ratio.estimate:.2f}x as fast as the best truncated network {interval}"
    if ratio.high < 1:
        interval = f"(95 % interval {1 / ratio.high:.2f} to {1 / ratio.low:.2f}{how})"
        times = f"{1 / ratio.estimate:.2f}x as fast as the best early exit"
        return f"Early exit loses, fewer layers win: the best truncated network is {times} {interval}"
    return f"No winner: early exit is {ratio.estimate:.2f}x as fast as the best truncated network {interval}"


def _dev_scores(early: Answer, fewer: Answer) -> str:
    """Both scores, said to be noise apart where they are."""
    scores = [answer.run["dev_score"] for answer in (early, fewer)]
    known = ["an unknown score" if score is None else f"{score * 100:.1f} %" for score in scores]
    change = early.change_from_truncated
    return f"{' against '.join(known)} on dev{' (noise)' if change is not None and change.is_noise else ''}"


def _floor_remark(*answers: Answer) -> str:
    """A warning where a choice keeps the floor on tune, and not on dev."""
    names = {"early exit": "early exit", "truncated": "the truncated network"}
    below = [names[answer.kind] for answer in answers if answer.below_on_dev]
    return f" On dev, {' and '.join(below)} fell below the floor kept on tune." if below else ""


def _peer_remark(*answers: Answer) -> str:
    """A warning where the whole network in INT8 is at least as fast as what was chosen here."""
    gains = [answer.run["speedup_best_int8"] for answer in answers]
    if None in gains or max(gains) > 1:
        return ""
    subject = "Neither" if len(answers) > 1 else "It"
    return f" {subject} {'is' if len(answers) > 1 else 'is not'} faster than the whole network in INT8."
