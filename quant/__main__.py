"""Command line of what is served: `python -m quant export | sensitivity`."""

import argparse
import os
import sys
from pathlib import Path

from models.command import exit_code, quiet
from models.config import UserError, parsed

EPILOG = """examples:
  python -m quant export checkpoints/sst2-pabee-minilm-1234 served --policy '{kind: entropy, threshold: 0.2}' \\
      --dataset_location GLUE
  python -m quant export CHECKPOINT served --recipe float32 --policy '{kind: patience, patience: 2}' --exits 3 4 6

then, with numpy, openvino and tokenizers installed and nothing else:
  python -c 'from artefact import EarlyExitModel; print(EarlyExitModel.load(".").predict(["a fine film"]))'
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m quant", description="Turn a checkpoint into what is served.")
    commands = top.add_subparsers(dest="command", required=True)
    export = commands.add_parser(
        "export",
        help="write one folder: graph with the exits inside, tokenizer, loader",
        description="Quantize a checkpoint and write one folder that is served without PyTorch and without ExitBench.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sensitivity = commands.add_parser(
        "sensitivity",
        help="which layer's INT8 moves the exits",
        description="Quantize one segment at a time and say what it does to every exit, on rows of `tune`.",
    )
    for command in (export, sensitivity):
        command.add_argument(
            "checkpoint", type=Path, help="a checkpoint folder, as `python -m benchmarks train` leaves it"
        )
        command.add_argument(
            "--recipe", default="{kind: int8_static, observer: kl}", help="as in a suite (default: %(default)s)"
        )
        command.add_argument(
            "--dataset_location",
            type=Path,
            metavar="DIR",
            help="GLUE folder in the original layout, to calibrate on; without it, through `datasets`",
        )
    export.add_argument("folder", type=Path, help="where to write")
    export.add_argument("--policy", required=True, help="as in a suite, such as '{kind: entropy, threshold: 0.2}'")
    export.add_argument(
        "--engine",
        choices=("openvino", "onnxruntime"),
        default="openvino",
        help="what is to serve it; onnxruntime takes --recipe float32 or int8_dynamic (default: %(default)s)",
    )
    export.add_argument("--exits", type=int, nargs="+", help="the exits to keep (default: all)")
    export.add_argument(
        "--text", action="store_true", help="write the tokenizer as an OpenVINO graph, too, so that texts may go in"
    )
    sensitivity.add_argument("--rows", type=int, default=512, help="rows to compare on (default: %(default)s)")
    sensitivity.add_argument(
        "--policy", default="{kind: entropy, threshold: 0.2}", help="what leaves where (default: %(default)s)"
    )
    sensitivity.add_argument(
        "--csv", type=Path, default=Path("sensitivity.csv"), help="every segment at every exit (default: %(default)s)"
    )
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(arguments)
    quiet()
    # Before PyTorch starts its threads: calibration is many small operations, and threads that spin between them fight.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    command = _export if options.command == "export" else _sensitivity
    return exit_code(lambda: command(options), options.checkpoint)


def _export(options: argparse.Namespace) -> int:
    from models.policies import Policy
    from quant.recipes import Int8Static, Recipe

    recipe = parsed("--recipe", options.recipe, Recipe)
    policy = parsed("--policy", options.policy, Policy)
    from models.checkpoints import load_checkpoint
    from models.training import trained_on
    from quant.engine import SERVING
    from quant.export import export

    checkpoint = load_checkpoint(options.checkpoint)
    spec, seed = trained_on(checkpoint)
    data = spec.task.load(options.dataset_location, seed) if options.text or isinstance(recipe, Int8Static) else None
    exits = options.exits or list(range(1, checkpoint.network.num_layers + 1))
    given = checkpoint, spec.task, data, recipe, policy, exits, options.text
    took = export(options.folder, *given, engine=SERVING[options.engine])
    print(
        f"{options.folder}: {took.served}; quantized and converted in {took.quantize_s:.1f} s, "
        f"written in {took.write_s:.1f} s"
    )
    return 0


def _sensitivity(options: argparse.Namespace) -> int:
    from models.policies import Policy
    from quant.recipes import Int8Static, Recipe

    recipe = parsed("--recipe", options.recipe, Recipe)
    policy = parsed("--policy", options.policy, Policy)
    if not isinstance(recipe, Int8Static):
        raise UserError(f"--recipe: sensitivity is that of int8_static, found {recipe.kind}")
    if options.rows < 1:
        raise UserError(f"--rows: must be at least 1, found {options.rows}")
    from rich.console import Console

    from models.checkpoints import load_checkpoint
    from models.training import trained_on
    from quant.sensitivity import sensitivity, table, write_csv

    checkpoint = load_checkpoint(options.checkpoint)
    spec, seed = trained_on(checkpoint)
    data = spec.task.load(options.dataset_location, seed)
    found = sensitivity(checkpoint, spec.task, data, recipe, policy, options.rows)
    write_csv(options.csv, found)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    console.print(table(found))
    console.print(
        f"{found.rows} rows of tune, {options.policy}; changes against floating point. {options.csv}: all exits."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
