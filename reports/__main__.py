"""`python -m reports`: tables, plots, a page, comparisons and gates, from the records of a run and nothing else."""

import argparse
import os
import sys
from functools import partial
from pathlib import Path

from models.command import exit_code
from models.config import UserError

DESCRIPTION = """\
Tables, plots, a page, comparisons and gates from output folders that `python -m benchmarks run` wrote.
Nothing is run again: whatever the records lack is left empty.
"""
EPILOG = """\
examples:
  python -m reports render runs/default              all of it, into runs/default/report
  python -m reports render runs/default --floor 0.02 choose within 2 % of float32 instead of 1 %
  python -m reports table runs/default               the same tables on this console
  python -m reports compare runs/old runs/new        what moved beyond noise: scores, exits, latency
  python -m reports gate init GATE.yaml runs/default the first baseline; and a gate to begin with, where there is none
  python -m reports gate GATE.yaml runs/new          does every rule hold?
  python -m reports gate accept GATE.yaml runs/new --reason TEXT   runs/new is the baseline from now on

render writes
  index.html           the page: answers, charts and tables in one file that opens offline
  results.md           the answer (early exit or fewer layers?), a table for each task and shape, LPOT's and the papers'
  results.csv, .json   one row for each run, every column; results_columns.md describes them
  front_*.png, .svg    score against measured speed-up, with the front and the truncated networks
  exits_*.png, .svg    where examples leave the network, float32 beside INT8
  speeds_*.png, .svg   score at equal layer speed-ups, every method beside fewer layers; speed_axis.csv has the numbers
  int8_study.csv       INT8 beside float32 at the same policy: exits, labels, confidence, thresholds that carry over
  floors.csv           the answer at other floors: where early exit beats fewer layers, and where not
  groups.csv           who pays for the speed: the answers by class and by length
  exits.csv            what each network's exits know: overthinking, the oracle, entropy and calibration by exit
  training.csv         score and calibration of each exit on select, beside networks trained alone
  seeds.csv            mean and spread of settings that were fine-tuned with several seeds
  load_*.png, .svg     latency against arrivals, simulated from the measured times; load.csv has the numbers
  shift_*.png, .svg    the exit-shift matrix of the chosen early exit: which rows INT8 makes leave elsewhere

gate writes, into RUNS/gate
  junit.xml, summary.md  for CI and its step summary
  tracked.json           scores and speed-ups for github-action-benchmark (customBiggerIsBetter)

exit codes: 0 done, or every rule held; 1 a rule failed; 2 a folder, gate or argument is unusable, or no rule failed but
something was INVALID, so that it could not be judged
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["gate"] and words[1:2] in (["init"], ["accept"]):
        words = [" ".join(words[:2]), *words[2:]]
    given = _parser().parse_args(words)
    return exit_code(partial(_run, given), given.command)


def _run(given: argparse.Namespace) -> int:
    try:
        if given.command == "render":
            render(given.folder, given.floor, given.output or given.folder / "report")
        elif given.command == "table":
            show(given.folder, given.floor)
        elif given.command == "compare":
            compare(given.folders, given.tolerance, given.markdown, given.json)
        elif given.command == "gate":
            code, lines = gate(given.gate, given.folder, given.against, given.output or given.folder / "gate")
            print("\n".join(lines))
            return code
        else:
            write_baseline(given.gate, given.folder, given.reason if given.command == "gate accept" else None)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def render(folder: Path, relative_floor: float, output: Path) -> None:
    """Write every table and plot of `folder` into `output`, and say where they are.

    Raises:
        UserError: the folder cannot be read, the floor is not a share, or `output` cannot be written.
    """
    # Imported here so that other commands start without pandas and matplotlib.
    from reports import columns, tables
    from reports.choice import apply_floor, choose
    from reports.other_tables import other_tables
    from reports.page import page_html
    from reports.plots import draw_all
    from reports.runs import load_runs

    runs = apply_floor(load_runs(folder), relative_floor)
    choices = choose(runs, relative_floor)
    others = other_tables(runs, choices)
    try:
        output.mkdir(parents=True, exist_ok=True)
        images = draw_all(runs, choices, output)
        texts = {
            "results.csv": tables.csv_text(runs),
            "results.json": tables.json_text(runs),
            "results_columns.md": columns.markdown(),
            "results.md": tables.markdown_text(runs, choices, images, others),
            "index.html": page_html(runs, choices, others),
        }
        texts |= {f"{other.file}.csv": other.csv for other in others if other.file is not None}
        for name, text in texts.items():
            (output / name).write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(
            f"cannot write {str(output)!r} ({error.strerror}); name another folder with --output"
        ) from error
    for choice in choices:
        print(f"{choice.task}, {choice.shape}: {choice.sentence}")
    plots = sum(map(len, images.values()))
    print(f"{len(runs.rows)} runs: {output / 'index.html'}, results.md, .csv, .json, {plots} plots")


def show(folder: Path, relative_floor: float) -> None:
    """Print the answers and the tables.

    Raises:
        UserError: the folder cannot be read, or the floor is not a share.
    """
    from rich.console import Console

    from reports.choice import apply_floor, choose
    from reports.other_tables import other_tables
    from reports.runs import load_runs
    from reports.tables import print_tables

    runs = apply_floor(load_runs(folder), relative_floor)
    choices = choose(runs, relative_floor)
    # Into a file or a pipe there is no width to find out, and rich would take 80.
    told = sys.stdout.isatty() or "COLUMNS" in os.environ
    print_tables(Console(width=None if told else 160), runs, choices, other_tables(runs, choices))


def compare(folders: list[Path], tolerance: float, markdown: Path | None, json: Path | None) -> None:
    """Print how each folder differs from the first, and write the same where asked.

    Raises:
        UserError: a folder cannot be read, shares no case with the first, or a file cannot be written.
    """
    from rich.console import Console

    from reports import compare as comparing
    from reports.files import write_text

    if len(folders) < 2:
        raise UserError(f"compare needs two folders or more, found only {str(folders[0])!r}")
    if not tolerance >= 0:
        raise UserError(f"--tolerance is a share of at least 0, not {tolerance}")
    first, *others = [comparing.read_folder(folder) for folder in folders]
    found = [comparing.compare(first, other, tolerance) for other in others]
    comparing.print_all(Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160), found)
    for path, text in ((markdown, comparing.markdown), (json, comparing.json_text)):
        if path is not None:
            write_text(path, text(found))


def gate(gate_path: Path, folder: Path, against: Path | None, output: Path) -> tuple[int, list[str]]:
    """Judge a folder and write the verdict; returns its exit code, and what to print.

    Raises:
        UserError: gate, baseline or folder are unusable, or `output` cannot be written.
    """
    from reports.gate import judge, read_gate, read_summaries
    from reports.gate_baseline import baseline_path, read_baseline
    from reports.gate_output import console_lines, write_outputs

    asked = read_gate(gate_path)
    path = against or (baseline_path(gate_path, asked) if asked.baseline else None)
    found = read_summaries(folder)
    verdict = judge(asked, read_baseline(path).cases if path else {}, found)
    write_outputs(verdict, found, output)
    return verdict.code, console_lines(verdict)


def write_baseline(gate_path: Path, folder: Path, reason: str | None) -> None:
    """Write a gate's first baseline, or, with a reason, replace it.

    Raises:
        UserError: see `reports.gate_baseline`.
    """
    from reports.gate_baseline import accept, init

    path = init(gate_path, folder) if reason is None else accept(gate_path, folder, reason)
    print(f"{path} is the baseline of {gate_path}: commit both")


def _parser() -> argparse.ArgumentParser:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m reports", description=DESCRIPTION, epilog=EPILOG, formatter_class=style)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    render_command = commands.add_parser(
        "render", help="write tables, plots and the page", formatter_class=style, epilog=EPILOG
    )
    render_command.add_argument("--output", type=Path, metavar="DIR", help="where to write (FOLDER/report)")
    table_command = commands.add_parser("table", help="print the tables", formatter_class=style, epilog=EPILOG)
    _add_comparing(commands)
    for command in (render_command, table_command):
        command.add_argument("folder", type=Path, metavar="FOLDER", help="holds records.jsonl")
        command.add_argument(
            "--floor",
            type=float,
            default=0.01,
            metavar="SHARE",
            help="choose among runs whose tune score is at most this share below float32's (0.01: 1 %%)",
        )
    return parser


def _add_comparing(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("compare", help="what moved between folders, beyond noise")
    command.add_argument(
        "folders", type=Path, nargs="+", metavar="FOLDER", help="the first is compared with each other"
    )
    command.add_argument(
        "--tolerance",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="latency and speed-up have moved where their interval lies beyond this share (%(default)s)",
    )
    command.add_argument("--markdown", type=Path, metavar="FILE", help="also write what is printed as Markdown")
    command.add_argument("--json", type=Path, metavar="FILE", help="also write every comparison, moved or not")
    commands_of_gates = {
        "gate": "do the runs of a folder keep the rules of a gate?",
        "gate init": "write a gate's first baseline, and the gate if there is none",
        "gate accept": "make runs the baseline, and keep the reason",
    }
    for name, text in commands_of_gates.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("gate", type=Path, metavar="GATE.yaml", help="such as those in yaml_configs/gates/")
        command.add_argument("folder", type=Path, metavar="RUNS", help="holds records.jsonl")
        if name == "gate":
            command.add_argument(
                "--against", type=Path, metavar="BASELINE", help="another baseline than the gate's own"
            )
            command.add_argument("--output", type=Path, metavar="DIR", help="where to write (RUNS/gate)")
        if name == "gate accept":
            command.add_argument("--reason", required=True, metavar="TEXT", help="why the baseline changes")


if __name__ == "__main__":
    sys.exit(main())
