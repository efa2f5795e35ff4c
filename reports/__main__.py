"""`python -m reports`: tables and plots from the records of a run, and nothing but the records."""

import argparse
import os
import sys
from pathlib import Path

from models.config import UserError

DESCRIPTION = """\
Tables and plots from an output folder that `python -m benchmarks run` wrote.
Nothing is run again: whatever the records lack is left empty.
"""
EPILOG = """\
examples:
  python -m reports render runs/default              every table and plot, into runs/default/report
  python -m reports render runs/default --floor 0.02 choose within 2 % of float32 instead of 1 %
  python -m reports table runs/default               the tables on this console

render writes
  results.md           the answer (early exit or fewer layers?), then a table for each task and shape
  results.csv          one row for each run, every column; results_columns.md describes them
  front_*.png, .svg    score against measured speed-up, with the front and the truncated networks
  exits_*.png, .svg    where examples leave the network, float32 beside INT8

exit codes: 0 done, 2 the folder or an argument is unusable
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = _parser().parse_args(arguments)
    try:
        if given.command == "render":
            render(given.folder, given.floor, given.output or given.folder / "report")
        else:
            show(given.folder, given.floor)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
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
    from reports.plots import draw_all
    from reports.runs import load_runs

    runs = apply_floor(load_runs(folder), relative_floor)
    choices = choose(runs, relative_floor)
    try:
        output.mkdir(parents=True, exist_ok=True)
        images = draw_all(runs, choices, output)
        texts = {
            "results.csv": tables.csv_text(runs),
            "results_columns.md": columns.markdown(),
            "results.md": tables.markdown_text(runs, choices, images),
        }
        for name, text in texts.items():
            (output / name).write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(
            f"cannot write {str(output)!r} ({error.strerror}); name another folder with --output"
        ) from error
    for choice in choices:
        print(f"{choice.task}, {choice.shape}: {choice.sentence}")
    print(f"{len(runs.rows)} runs: {output / 'results.md'}, results.csv, {sum(map(len, images.values()))} plots")


def show(folder: Path, relative_floor: float) -> None:
    """Print the answers and the tables.

    Raises:
        UserError: the folder cannot be read, or the floor is not a share.
    """
    from rich.console import Console

    from reports.choice import apply_floor, choose
    from reports.runs import load_runs
    from reports.tables import print_tables

    runs = apply_floor(load_runs(folder), relative_floor)
    # Into a file or a pipe there is no width to find out, and rich would take 80.
    told = sys.stdout.isatty() or "COLUMNS" in os.environ
    print_tables(Console(width=None if told else 160), runs, choose(runs, relative_floor))


def _parser() -> argparse.ArgumentParser:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m reports", description=DESCRIPTION, epilog=EPILOG, formatter_class=style)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    render_command = commands.add_parser("render", help="write tables and plots", formatter_class=style, epilog=EPILOG)
    render_command.add_argument("--output", type=Path, metavar="DIR", help="where to write (FOLDER/report)")
    table_command = commands.add_parser("table", help="print the tables", formatter_class=style, epilog=EPILOG)
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


if __name__ == "__main__":
    sys.exit(main())
