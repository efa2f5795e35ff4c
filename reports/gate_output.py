"""A verdict for those who wait for it: the console, CI (JUnit XML), a pull request (Markdown), a tracked history."""

import json
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from reports.files import write_text
from reports.gate import Finding, Verdict
from reports.summaries import Summary

SHOWN = 100  # lines of a Markdown summary; CI services cut long ones off
WORDS = {0: "passed", 1: "FAILED", 2: "is INVALID: it could not be judged"}


def console_lines(verdict: Verdict) -> list[str]:
    """What did not pass, one line each; what nothing was held to; and the verdict with its counts."""
    bad = [_line(finding) for finding in [*verdict.having("fail"), *verdict.having("invalid")]]
    unknown = [f"not in the baseline (`gate accept` adds it): {case}" for case in verdict.unknown]
    counts = {outcome: len(verdict.having(outcome)) for outcome in ("pass", "fail", "invalid")}
    told = f"{counts['pass']} checks passed, {counts['fail']} failed, {counts['invalid']} INVALID"
    return [*bad, *unknown, f"Gate {verdict.gate} {WORDS[verdict.code]}: {told}"]


def write_outputs(verdict: Verdict, found: dict[str, Summary], folder: Path) -> None:
    """Write `junit.xml`, `summary.md` and `tracked.json`.

    Raises:
        UserError: the folder cannot be written.
    """
    texts = {"junit.xml": junit(verdict), "summary.md": markdown(verdict), "tracked.json": tracked(found)}
    for name, text in texts.items():
        write_text(folder / name, text)


def junit(verdict: Verdict) -> str:
    """One test case for each finding: a broken rule is a failure, what could not be judged is an error."""
    counts = {"failures": len(verdict.having("fail")), "errors": len(verdict.having("invalid"))}
    numbers = {"tests": str(len(verdict.findings))} | {name: str(count) for name, count in counts.items()}
    suites = ElementTree.Element("testsuites", numbers)
    suite = ElementTree.SubElement(suites, "testsuite", {"name": f"gate {verdict.gate}"} | numbers)
    for finding in verdict.findings:
        test = ElementTree.SubElement(suite, "testcase", {"classname": finding.rule, "name": finding.case})
        if finding.outcome != "pass":
            # Terminal colours in a library's error text are not allowed in XML.
            message = "".join(letter for letter in finding.message if letter.isprintable())
            kind = "failure" if finding.outcome == "fail" else "error"
            ElementTree.SubElement(test, kind, {"message": message})
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def markdown(verdict: Verdict) -> str:
    """A step summary: the verdict, a table of the rules, then every line that the console shows."""
    *lines, said = console_lines(verdict)
    counts = Counter((finding.rule, finding.outcome) for finding in verdict.findings)
    rules = dict.fromkeys(finding.rule for finding in verdict.findings)
    cells = [[rule, *(str(counts[rule, outcome]) for outcome in ("pass", "fail", "invalid"))] for rule in rules]
    table = ["| rule | passed | failed | INVALID |", "| --- | ---: | ---: | ---: |"]
    table += [f"| {' | '.join(row)} |" for row in cells]
    more = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    block = ["", "````text", *lines[:SHOWN], *more, "````"] if lines else []
    return "\n".join([f"**{said}**", "", *table, *block]) + "\n"


def tracked(found: dict[str, Summary]) -> str:
    """The list that github-action-benchmark reads as `customBiggerIsBetter`: scores, and speed-ups over no exit."""
    entries: list[dict[str, str | float]] = []
    for case, run in found.items():
        if (score := run.scores.get("dev", {}).get(run.metric)) is not None:
            entries.append({"name": f"{case}: {run.metric}", "unit": run.metric, "value": score})
        if (ratio := run.speedups.get("no_exit")) is not None:
            name, interval = f"{case}: speed-up over no exit", f"{ratio.low:.3g} to {ratio.high:.3g}"
            entries.append({"name": name, "unit": "x", "value": ratio.estimate, "range": interval})
    return json.dumps(entries, indent=1) + "\n"


def _line(finding: Finding) -> str:
    word = {"fail": "FAILED", "invalid": "INVALID"}[finding.outcome]
    return f"{word} {finding.rule}: {finding.case}: {finding.message}"
