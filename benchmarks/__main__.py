"""Command line of the harness: `python -m benchmarks run | train | tune | accuracy | benchmark | reference | ...`."""

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from benchmarks.reference_flags import add_flags
from models.command import exit_code, quiet
from models.config import UserError, cases
from models.cpu import processors

if TYPE_CHECKING:  # PyTorch and transformers take seconds to import, and --help needs neither
    from pydantic.fields import FieldInfo

    from benchmarks.suite import Suite

EPILOG = """examples:
  python -m benchmarks run yaml_configs/suites/default.yaml
  python -m benchmarks run yaml_configs/suites/sst2_minilm.yaml --dataset_location GLUE --checkpoints ~/exitbench
  python -m benchmarks run SUITE.yaml --dry-run            what would run, how long, how much disk
  python -m benchmarks run SUITE.yaml --only int8_static   only cases whose name contains the text
  python -m benchmarks train SUITE.yaml                    fine-tune its checkpoints and stop
  python -m benchmarks tune yaml_configs/tuning/default.yaml   the fastest within an accuracy floor, searched
  python -m benchmarks accuracy --input_model FOLDER       what one model scores on dev, in LPOT's lines
  python -m benchmarks benchmark --input_model FOLDER --int8 true   how fast it answers, here in INT8
  python -m benchmarks reference pabee FLAGS               PABEE's own command line; deebert: DeeBERT's
  python -m benchmarks depths                              what leaving at each layer of BERT-base costs
  python -m benchmarks list                                suites, axes and their cases

exit codes: 0 all runs ok, 1 a run failed (its record says why), 2 unusable input, 130 interrupted; tune: 0 PASS, 1 FAIL
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure early exit x INT8 on this CPU: accuracy, speed-up and exit layers of every combination.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train what is missing, then measure every combination of a suite")
    train = commands.add_parser("train", help="only fine-tune the checkpoints of a suite")
    tune = commands.add_parser("tune", help="search recipes, exits kept and thresholds within an accuracy floor")
    for command, kind, folder in ((run, "suite", "suites"), (train, "suite", "suites"), (tune, "tuning", "tuning")):
        command.add_argument(kind, type=Path, help=f"a YAML file, such as yaml_configs/{folder}/default.yaml")
        command.add_argument(
            "--dataset_location",
            type=Path,
            metavar="DIR",
            help="GLUE folder in the original layout (DIR/SST-2/train.tsv ...); without it, through `datasets`",
        )
        command.add_argument(
            "--checkpoints",
            type=Path,
            default=Path("checkpoints"),
            metavar="DIR",
            help="where fine-tuned models are kept and found again (default: %(default)s)",
        )
        command.add_argument("--smoke", action="store_true", help="the same combinations on a handful of rows")
    for command in (run, train):
        command.add_argument(
            "--ray",
            metavar="ADDRESS",
            help="first fine-tune and record over this Ray cluster, or over one started here if it is `local`",
        )
    for command, default in ((run, "runs/SUITE"), (tune, "its workspace, or runs/tune_NAME")):
        command.add_argument(
            "--output", type=Path, metavar="DIR", help=f"where records go (default: {default}); the same folder resumes"
        )
    run.add_argument("--only", metavar="TEXT", help="only the runs whose case contains TEXT")
    run.add_argument("--dry-run", action="store_true", help="print the runs, rough minutes and disk, and stop")
    tune.add_argument("--input_model", type=Path, metavar="DIR", help="tune this checkpoint, not those of the file")
    tune.add_argument(
        "--output_model", type=Path, metavar="DIR", help="where the winner is exported (default: artefact/ in --output)"
    )
    _add_lpot(commands)
    reference = commands.add_parser("reference", help="the command lines of PABEE's and DeeBERT's own scripts")
    scripts = reference.add_subparsers(dest="script", required=True)
    for script, original in (("pabee", "run_glue_with_pabee.py"), ("deebert", "run_glue_deebert.py")):
        add_flags(scripts.add_parser(script, help=f"in place of `python {original}`"), script)
    depths = commands.add_parser("depths", help="what leaving at each layer costs (random weights, timing only)")
    depths.add_argument("--family", choices=["bert", "roberta", "albert"], default="bert", help="default: bert")
    depths.add_argument("--layers", type=int, default=12, help="default: %(default)s, BERT-base")
    depths.add_argument("--hidden", type=int, default=768, help="hidden size, a multiple of 64 (default: %(default)s)")
    depths.add_argument("--length", type=int, nargs="+", default=[128, 32], help="tokens (default: 128 32)")
    depths.add_argument("--batch", type=int, default=1, help="rows a call (default: %(default)s)")
    depths.add_argument("--threads", type=int, default=len(processors()), help="default: all cores")
    depths.add_argument("--repeats", type=int, default=15, help="interleaved repeats (default: %(default)s)")
    depths.add_argument(
        "--recipe",
        choices=["float32", "bfloat16", "int8_static", "int8_dynamic"],
        default="int8_static",
        help="default: %(default)s",
    )
    commands.add_parser("list", help="shipped suites, and the cases of every axis")
    return top


def _add_lpot(commands: Any) -> None:
    """LPOT's two modes, with LPOT's parameters and defaults."""
    for name, does in (("accuracy", "what one model scores on dev"), ("benchmark", "how fast one model answers")):
        command = commands.add_parser(name, help=f"{does}, in LPOT's lines")
        command.add_argument("--input_model", type=Path, metavar="DIR", help="a checkpoint, or an exported model")
        command.add_argument(
            "--config", type=Path, metavar="DIR", help="what --int8 true reads instead, if given: LPOT's tuned model"
        )
        command.add_argument(
            "--int8",
            choices=["true", "false"],
            default="false",
            help="whether in INT8; a checkpoint is quantized on the spot (default: %(default)s)",
        )
        command.add_argument(
            "--topology", metavar="NAME", help="a shipped suite or tuning, which must be of the model's task"
        )
        command.add_argument("--dataset_location", type=Path, metavar="DIR", help="as for run")
        command.add_argument("--batch_size", type=int, default=16, help="rows a call (default: %(default)s)")
        command.add_argument("--iters", type=int, default=100, help="calls that benchmark times (default: %(default)s)")


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(arguments)
    quiet()
    try:
        return exit_code(lambda: _command(options), options.command)
    except KeyboardInterrupt:
        print("Interrupted: finished runs are kept; the same command resumes.", file=sys.stderr)
        return 130


def _command(options: argparse.Namespace) -> int:
    if options.command == "list":
        return _list()
    if options.command == "depths":
        return _depths(options)
    if options.command == "tune":
        return _tune(options)
    if options.command in ("accuracy", "benchmark"):
        return _lpot(options)
    if options.command == "reference":
        from benchmarks.reference import run

        return run(options, partial(print, flush=True))
    from benchmarks.expansion import unmatched
    from benchmarks.suite import read_suite

    suite = read_suite(options.suite)
    if options.smoke:
        suite = suite.smoke()
    else:
        for pattern in unmatched(suite):
            print(f"exclude: {pattern!r} is in no case of suite {suite.name}; --dry-run prints them", file=sys.stderr)
    if options.command == "train":
        return _train(options, suite)
    return _dry_run(suite, options.only) if options.dry_run else _run(options, suite)


def _run(options: argparse.Namespace, suite: "Suite") -> int:
    from rich.console import Console

    from benchmarks.disk import writing
    from benchmarks.expansion import left_out
    from benchmarks.runner import measure
    from benchmarks.session import plan, sessions

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    output = options.output or Path("runs") / suite.name
    failed = []
    for reason in left_out(suite):
        console.print(f"left out: {reason}")
    given = suite, options.dataset_location, options.checkpoints
    prepared = partial(sessions, *given, output, options.only, options.smoke, console.print)
    with writing(output):  # fails before hours of training, if it fails
        if options.ray:
            from benchmarks.scale_out import cluster, fine_tune_all, record_all

            with cluster(options.ray):
                fine_tune_all(plan(*given, options.only), console.print)
                for session in prepared():
                    record_all(session, console.print)
        for session in prepared():
            failed += measure(session, console.print)
    for record in failed:
        console.print(f"failed: {record.case}: {record.error}", style="red", markup=False)
    console.print(f"records: {output / 'records.jsonl'}; report: python -m reports render {output}")
    return 1 if failed else 0


def _tune(options: argparse.Namespace) -> int:
    from benchmarks.disk import writing
    from benchmarks.tuning import read_tuning

    tuning = read_tuning(options.tuning)
    tuning = tuning.smoke() if options.smoke else tuning
    tuning = tuning if options.input_model is None else tuning.of_checkpoint(options.input_model)
    workspace = tuning.tuning.workspace.path
    output = options.output or Path(workspace or f"runs/tune_{tuning.model.name}")
    # Before PyTorch starts its threads: exporting the winner calibrates, and threads that spin fight.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from benchmarks.winner import ARTEFACT, run_tuning

    artefact = options.output_model or output / ARTEFACT
    say = partial(print, flush=True)  # one line a trial: whoever follows a file sees it
    with writing(output):  # fails before hours of training, if it fails
        return run_tuning(tuning, options.dataset_location, options.checkpoints, output, artefact, options.smoke, say)


def _lpot(options: argparse.Namespace) -> int:
    # Before PyTorch starts its threads: see `_tune`.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from benchmarks.lpot import measure

    for line in measure(options):
        print(line)
    return 0


def _train(options: argparse.Namespace, suite: "Suite") -> int:
    from benchmarks.session import plan, planned_folders
    from models.training import fine_tune

    if options.ray:
        from benchmarks.scale_out import cluster, fine_tune_all

        with cluster(options.ray):
            fine_tune_all(plan(suite, options.dataset_location, options.checkpoints, None), print)
    for task in suite.tasks:
        data = task.load(options.dataset_location, suite.seed)
        for checkpoint in suite.checkpoints:
            folders = planned_folders(checkpoint, task, suite.seed, data.data_hash, options.checkpoints)
            for folder, training in folders:
                if training is not None:
                    print(fine_tune(training, data, folder))
                    _print_exits(folder, task.headline_metric)
    return 0


def _print_exits(folder: Path, metric: str) -> None:
    """What each exit of a checkpoint is worth on `select`."""
    import json

    from models.checkpoints import TRAINING

    for entry in json.loads((folder / TRAINING).read_text()).get("exits", []):
        ece = f", calibration error {entry['ece']:.3f}" if "ece" in entry else ""
        print(f"  exit {entry['layer']:2}: {metric} {entry['score']:.4f}{ece}")


def _dry_run(suite: "Suite", only: str | None) -> int:
    from benchmarks.expansion import estimate, foreseen, left_out, nothing_to_run, selected

    runs = selected(foreseen(suite), only)
    if not runs:
        raise nothing_to_run(suite, only)
    for run in runs:
        print(run.case)
    cost = estimate(suite, runs)
    for reason in left_out(suite):
        print(f"left out: {reason}")
    minutes, disk = f"{cost.minutes:.0f} minutes of measuring (training apart)", f"{cost.disk_mb:.0f} MB of disk"
    print(f"{len(runs)} runs, roughly {minutes} and {disk}")
    return 0


def _depths(options: argparse.Namespace) -> int:
    from pydantic import TypeAdapter

    from quant.engine import OpenVino

    OpenVino().check()
    from benchmarks.depths import run
    from quant.recipes import Recipe

    if options.hidden % 64 or min(options.layers, options.batch, options.threads, options.repeats) < 1:
        raise UserError(f"depths: --hidden must be a multiple of 64 (found {options.hidden}), all counts at least 1")
    if not all(2 <= length <= 512 for length in options.length):
        raise UserError(f"depths: --length must lie in 2..512, found {options.length}")
    return run(options, TypeAdapter(Recipe).validate_python(options.recipe))


def _list() -> int:
    from benchmarks.suite import read_suite
    from benchmarks.tuning import SHIPPED, read_tuning
    from models.families import FAMILIES, SHORT_NAMES
    from models.methods import Method
    from models.policies import Policy
    from models.tasks import Task
    from quant.engine import Engine
    from quant.recipes import Recipe

    print("suites")
    for path in sorted(Path("yaml_configs/suites").glob("*.yaml")):
        suite = read_suite(path)
        print(f"  {path}  ({len(suite.tasks)} tasks, {len(suite.checkpoints)} checkpoints)")
    print("tunings")
    for path in sorted(SHIPPED.glob("*.yaml")):
        tuning = read_tuning(path)
        print(f"  {path}  ({tuning.model.task.name}, {len(tuning.model.checkpoints)} checkpoints)")
    for axis, union in (
        ("tasks", Task),
        ("methods", Method),
        ("policies", Policy),
        ("recipes", Recipe),
        ("engines", Engine),
    ):
        print(axis)
        for case in dict.fromkeys(cases(union).values()):
            kinds = ", ".join(get_args(case.model_fields["kind"].annotation))
            summary = (case.__doc__ or "").strip().splitlines()[0]
            print(f"  {kinds:<12} {summary}")
            options = [_option(name, field) for name, field in case.model_fields.items() if name != "kind"]
            if options:
                print(f"  {'':<12} options: {', '.join(options)}")
    print(f"families\n  {', '.join(FAMILIES)}\nbackbones by short name\n  {', '.join(SHORT_NAMES)}")
    return 0


def _option(name: str, field: "FieldInfo") -> str:
    """The name of an option, with its values where it has a few."""
    values = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    return f"{name} ({' | '.join(map(str, values))})" if values else name


if __name__ == "__main__":
    sys.exit(main())
