"""Baselines of gates: one small JSON file, a line for each case, made to be committed and read in a diff."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import yaml
from pydantic import Field, ValidationError

from models.config import Config, UserError, explain
from reports.files import write_text
from reports.gate import Gate, judge, read_gate
from reports.rules import ExitShift, MeanLayerChange, Records, ScoreDrop, SizeGrowth, SpeedupDrop
from reports.runs import load_runs
from reports.summaries import Summary, summarize

NOTE = """\
# Limits to begin with: change them to what matters to you. That of speedup_drop is 0.1 or, where the noisiest of these
# runs cannot tell a tenth from noise, what it can tell; with more `timing: repeats` in the suite it can be lower.
"""


class Acceptance(Config):
    """Why a baseline is what it is: the reason that was given, when (UTC), and the revisions that were measured."""

    reason: str
    at: str
    revisions: list[str]


class Baseline(Config):
    """A baseline file: its history, the newest last, and a summary of each case."""

    schema_: Literal["exitbench/baseline/1"] = Field(alias="schema")
    history: list[Acceptance]
    cases: dict[str, Summary]


def read_baseline(path: Path) -> Baseline:
    """Read a baseline file.

    Raises:
        UserError: it is missing, or not a baseline of this version.
    """
    try:
        return Baseline.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"baseline {str(path)!r} cannot be read ({error.strerror}); `gate init` writes one") from error
    except ValidationError as error:
        raise explain(error, str(path)) from error


def baseline_path(gate_path: Path, gate: Gate) -> Path:
    """Where a gate's baseline is.

    Raises:
        UserError: the gate names none.
    """
    if gate.baseline is None:
        raise UserError(f"{gate_path}: baseline: is required here; name a file that stands beside the gate")
    return gate_path.parent / gate.baseline


def init(gate_path: Path, folder: Path) -> Path:
    """Write the first baseline of a gate; and the gate itself where there is none yet. Returns the baseline's path.

    Raises:
        UserError: there is a baseline already, or the runs cannot be one (see `accept`).
    """
    begun = None if gate_path.exists() else _first_gate(gate_path.stem, folder)
    gate = read_gate(gate_path) if begun is None else Gate.model_validate(begun)
    path = baseline_path(gate_path, gate)
    if path.exists():
        raise UserError(f"{str(path)!r} exists; `gate accept --reason TEXT` replaces it and keeps its history")
    baseline = _baseline(gate_path, gate, folder, [], "the first baseline")
    if begun is not None:
        write_text(gate_path, NOTE + yaml.safe_dump(begun, sort_keys=False, default_flow_style=None, width=120))
    write_text(path, _json_text(baseline))
    return path


def accept(gate_path: Path, folder: Path, reason: str) -> Path:
    """Make the runs of a folder the baseline, and keep the reason in its history. Returns the baseline's path.

    Raises:
        UserError: there is no baseline yet, no reason, or the runs would not pass the gate against themselves: a failed
            or INVALID record, a score below its floor, a ratio too noisy for its rule.
    """
    if not reason.strip():
        raise UserError("--reason is empty; say in a few words why the baseline changes")
    gate = read_gate(gate_path)
    path = baseline_path(gate_path, gate)
    write_text(path, _json_text(_baseline(gate_path, gate, folder, read_baseline(path).history, reason)))
    return path


def _baseline(gate_path: Path, gate: Gate, folder: Path, history: list[Acceptance], reason: str) -> Baseline:
    """The runs of a folder as a baseline; refused where they would not pass the gate against themselves."""
    runs = load_runs(folder, by_row=False)
    cases = {case: run for case, run in sorted(summarize(folder, runs).items()) if gate.selects(case)}
    bad = [finding for finding in judge(gate, cases, cases).findings if finding.outcome != "pass"]
    if bad:
        raise UserError(
            f"{str(folder)!r} cannot be the baseline of {str(gate_path)!r}: {bad[0].case}: {bad[0].message}"
            f" ({len(bad) - 1} more); mend the runs or the rule, or narrow its runs:"
        )
    revisions = sorted({str(record.environment.get("revision", "unknown")) for record in runs.records.values()})
    at = datetime.now(UTC).isoformat(timespec="seconds")
    history = [*history, Acceptance(reason=reason, at=at, revisions=revisions)]
    return Baseline(schema="exitbench/baseline/1", history=history, cases=cases)


def _first_gate(name: str, folder: Path) -> dict:
    """A gate to begin with: the rules that have something to judge, and no limit tighter than these runs can tell."""
    found = summarize(folder, load_runs(folder, by_row=False)).values()
    ratios = [run.speedups["no_exit"] for run in found if "no_exit" in run.speedups]
    noise = max((float(np.log(ratio.high / ratio.low)) / 2 for ratio in ratios), default=0)
    # Two measurements are as noisy as the square root of two; a share beyond 0.45 would be no limit (see SpeedupDrop).
    drop = float(np.clip(np.ceil(noise * 2**0.5 * 20) / 20, 0.1, 0.45))
    rules = [
        Records(kind="records"),
        ScoreDrop(kind="score_drop", at_most=0.01),
        MeanLayerChange(kind="mean_layer_change", at_most=0.2),
        ExitShift(kind="exit_shift", at_most=0.3),
        SpeedupDrop(kind="speedup_drop", over="no_exit", at_most=drop),
        SizeGrowth(kind="size_growth", at_most=0.05),
    ]
    useful = [rule for rule in rules if any(rule.judge(run, run) for run in found)]
    said = [{"kind": rule.kind, **rule.model_dump(exclude_unset=True)} for rule in useful]
    return {"schema": "exitbench/gate/1", "name": name, "baseline": f"{name}.json", "rules": said}


def _json_text(baseline: Baseline) -> str:
    history = ",\n".join(f"    {entry.model_dump_json()}" for entry in baseline.history)
    cases = ",\n".join(
        f"    {json.dumps(case)}: {run.model_dump_json(exclude_defaults=True)}" for case, run in baseline.cases.items()
    )
    head = f'{{\n  "schema": "{baseline.schema_}",\n'
    return f'{head}  "history": [\n{history}\n  ],\n  "cases": {{\n{cases}\n  }}\n}}\n'
