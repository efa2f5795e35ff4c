"""Gates: rules that the runs of a folder must keep, mostly against a committed baseline (`reports/gate_baseline.py`).

Starts in an instant: no PyTorch, pandas, scipy or matplotlib.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from models.config import Config, UserError, explain, read_yaml
from reports.rules import Judged, Rule
from reports.runs import load_runs
from reports.summaries import Summary, summarize

SHIPPED = Path("yaml_configs/gates")


class Gate(Config):
    """A gate file. See `yaml_configs/gates/` for a complete one.

    Attributes:
        baseline: the baseline's file, beside this one; None for rules that need none.
    """

    schema_: Literal["exitbench/gate/1"] = Field(alias="schema")
    name: str = Field(min_length=1)
    baseline: str | None = None
    rules: list[Rule] = Field(min_length=1)

    def selects(self, case: str) -> bool:
        """Whether any rule looks at this case."""
        return any(fnmatchcase(case, rule.runs) for rule in self.rules)


@dataclass(frozen=True)
class Finding:
    """What one rule found on one run."""

    rule: str
    case: str
    outcome: Literal["pass", "fail", "invalid"]
    message: str


@dataclass(frozen=True)
class Verdict:
    """What a gate says of a folder.

    Attributes:
        findings: of every rule on every run that it could look at.
        unknown: selected cases that the baseline does not hold: no rule held them to anything before. None where there
            is no baseline.
    """

    gate: str
    findings: list[Finding]
    unknown: list[str]

    def having(self, outcome: str) -> list[Finding]:
        """The findings of one outcome."""
        return [finding for finding in self.findings if finding.outcome == outcome]

    @property
    def code(self) -> int:
        """0: passed; 1: a rule failed; 2: none failed, but something could not be judged."""
        if self.having("fail"):
            return 1
        return 2 if self.having("invalid") else 0


def read_gate(path: Path) -> Gate:
    """Parse a gate file.

    Raises:
        UserError: missing file, broken YAML, or the first thing in it that is not allowed, with its key path.
    """
    try:
        return Gate.model_validate(read_yaml(path, "gate", SHIPPED))
    except ValidationError as error:
        raise explain(error, str(path)) from error


def read_summaries(folder: Path) -> dict[str, Summary]:
    """Case -> summary of its newest run, from an output folder.

    Raises:
        UserError: the folder holds no records, or a file in it is damaged.
    """
    return summarize(folder, load_runs(folder, by_row=False))


def judge(gate: Gate, before: dict[str, Summary], after: dict[str, Summary]) -> Verdict:
    """Every rule on every run that it selects, in the baseline (`before`) or now.

    A missing, failed or INVALID record is a finding of its own, and no other rule looks at such a run.

    Raises:
        UserError: a rule selects no run, or none that it could judge.
    """
    cases = [case for case in sorted(before.keys() | after.keys()) if gate.selects(case)]
    unsound = {case: judged for case in cases if (judged := _unsound(after.get(case))) is not None}
    findings = [Finding("records", case, *judged) for case, judged in unsound.items()]
    for number, rule in enumerate(gate.rules):
        selected = [case for case in cases if fnmatchcase(case, rule.runs)]
        sound = [case for case in selected if case not in unsound]
        of_rule = {case: rule.judge(before.get(case), after[case]) for case in sound}
        found = [Finding(rule.kind, case, *judged) for case, judged in of_rule.items() if judged is not None]
        if not found and len(sound) == len(selected):
            why = "matches no run" if not selected else f"finds nothing to judge in the {len(selected)} runs it matches"
            raise UserError(f"gate {gate.name}: rules.{number}: {rule.kind} of runs {rule.runs!r} {why}; mend the rule")
        findings += found
    return Verdict(gate.name, findings, [case for case in cases if before and case not in before])


def _unsound(run: Summary | None) -> Judged | None:
    if run is None:
        return Judged("fail", "there is no record, but the baseline has this case")
    if run.error is not None:
        return Judged("fail", f"the run failed: {run.error}")
    return None if run.invalid is None else Judged("invalid", f"the record is INVALID: {run.invalid}")
