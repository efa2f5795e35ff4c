"""Which runs may be trusted: how each run's timing is judged, beside its session and those it is compared with."""

from collections import defaultdict
from typing import Any

from benchmarks.records import RunRecord
from benchmarks.validity import Doubt, doubts
from reports.baselines import timed_together
from reports.timings import Timings

Row = dict[str, Any]


def untrusted(row: Row) -> bool:
    """Whether a run is INVALID, for its score or for its seconds: such a run is never chosen."""
    return "INVALID" in (row["validity"], row["timing_validity"])


def find_doubts(
    records: list[RunRecord], timings: dict[str, Timings], baselines: dict[str, dict[str, str]]
) -> dict[str, list[Doubt]]:
    """run_id -> what is wrong with its seconds, of every timed run; `baselines` as `find_baselines` gives them."""
    sessions: dict[tuple[str, ...], list[RunRecord]] = defaultdict(list)
    for record in records:
        if record.run_id in timings:
            sessions[timed_together(record)].append(record)
    found: dict[str, list[Doubt]] = {}
    for together in sessions.values():
        seconds = {record.run_id: timings[record.run_id].seconds for record in together}
        found |= doubts(seconds, together[0].conditions)
    invalid = {run_id for run_id, of_run in found.items() if any(doubt.invalid for doubt in of_run)}
    for run_id in baselines.keys() - invalid:
        if invalid & set(baselines[run_id].values()):
            found[run_id].append(Doubt(False, "baseline: a run that it is compared with is INVALID"))
    return found


def trust_fields(found: list[Doubt]) -> Row:
    """The columns of a run that has these doubts."""
    state = "INVALID" if any(doubt.invalid for doubt in found) else "warning" if found else "valid"
    return {"timing_validity": state, "timing_doubts": "; ".join(doubt.line for doubt in found) or None}
