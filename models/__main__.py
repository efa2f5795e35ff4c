"""Command line of checkpoints that come from elsewhere: `python -m models import | export`."""

import argparse
import sys
from pathlib import Path

from models.command import exit_code, quiet
from models.config import parsed

EPILOG = """examples:
  python -m models import --layout pabee saved_models/mrpc checkpoints/mrpc-pabee
  python -m models import --layout deebert saved_models/bert-base/SST-2/two_stage checkpoints/sst2-deebert --task sst2
  python -m models export --layout pabee checkpoints/mrpc-pabee-minilm-1234 saved_models/mrpc

then, in a suite:
  checkpoints: [{folder: checkpoints/mrpc-pabee}]
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m models",
        description="Move checkpoints between the reference implementations of PABEE and DeeBERT and ExitBench.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True)
    take = commands.add_parser("import", help="read what a reference's script wrote")
    give = commands.add_parser("export", help="write what a reference's script reads")
    for command in (take, give):
        command.add_argument(
            "--layout", choices=["pabee", "deebert"], required=True, help="whose key names and classes"
        )
    take.add_argument(
        "source", type=Path, metavar="FOLDER", help="config.json, pytorch_model.bin or model.safetensors, tokenizer"
    )
    take.add_argument("--task", help="as in a suite, such as mrpc (default: finetuning_task of config.json)")
    take.add_argument(
        "--max_seq_length", type=int, default=128, help="tokens a row is cut to (default: %(default)s, the references')"
    )
    give.add_argument(
        "source", type=Path, metavar="CHECKPOINT", help="a checkpoint folder, as `python -m benchmarks train` leaves it"
    )
    for command in (take, give):
        command.add_argument("folder", type=Path, metavar="OUTPUT", help="where to write; new or empty")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(arguments)
    quiet()
    command = _import if options.command == "import" else _export
    return exit_code(lambda: command(options), options.folder)


def _import(options: argparse.Namespace) -> int:
    from models.tasks import Task

    task = None if options.task is None else parsed("--task", options.task, Task)
    from models.reference import import_checkpoint

    task = import_checkpoint(options.layout, options.source, options.folder, task, options.max_seq_length)
    print(
        f"{options.folder}: {options.layout} on {task.name}. In a suite: checkpoints: [{{folder: {options.folder}}}]. "
        "Rows of tune may be among those it was trained on."
    )
    return 0


def _export(options: argparse.Namespace) -> int:
    from models.reference import export_checkpoint

    export_checkpoint(options.layout, options.source, options.folder)
    print(options.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
