"""The flags of PABEE's and DeeBERT's own scripts, with their defaults, and what is refused before anything runs.

The scripts are `run_glue_with_pabee.py` and `run_glue_deebert.py` of the research projects of `transformers`. What
differs from them is in docs/differences.md.
"""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from models.config import UserError

if TYPE_CHECKING:  # every command's parser reads these flags, and only a run needs numpy
    from models.data import BaseTask

SWITCHES = {
    "do_train": "fine-tune, and write the model to --output_dir",
    "do_eval": "score the model in --output_dir on dev",
    "evaluate_during_training": "always so: fine-tuning scores select every --logging_steps, and never dev",
    "do_lower_case": "the model's own tokenizer files decide",
    "eval_all_checkpoints": "score the checkpoint-N folders in --output_dir, too",
    "no_cuda": "always so",
    "overwrite_output_dir": "fine-tune into a folder that is not empty",
    "overwrite_cache": "always so: nothing is cached",
    "fp16": "not done: bfloat16 where the CPU has it",
}
DEEBERT_SWITCHES = {
    "eval_highway": "count exits, and say what they cost",
    "eval_each_highway": "score every exit, into each_layer.npy",
    "eval_after_first_stage": "score the whole network before its off-ramps",
}
NUMBERS = {
    "max_seq_length": (128, "tokens a row is cut to"),
    "per_gpu_train_batch_size": (8, "rows a step"),
    "gradient_accumulation_steps": (1, "so many times the rows a step"),
    "learning_rate": (5e-5, "where it starts to fall"),
    "weight_decay": (0.0, "of everything but biases and norms"),
    "adam_epsilon": (1e-8, "no other value"),
    "max_grad_norm": (1.0, "no other value"),
    "num_train_epochs": (3.0, "passes over fit"),
    "max_steps": (-1, "steps instead of epochs, where positive"),
    "warmup_steps": (0, "steps over which the learning rate rises"),
    "seed": (42, "of fine-tuning, and of the slices of train"),
    "local_rank": (-1, "no other value: one process"),
    "per_gpu_eval_batch_size": (1, "rows a call"),
    "logging_steps": (500, "steps between two scores of select, at most an epoch"),
    "save_steps": (500, "steps between two checkpoint-N folders; 0: none"),
}
NOT_READ = {
    "fp16": "fine-tuning is in bfloat16 where the CPU has it, scores are those of float32",
    "cache_dir": "set HF_HUB_CACHE instead",
    "server_ip": "there is no remote debugger",
    "server_port": "there is no remote debugger",
}


def add_flags(command: argparse.ArgumentParser, layout: str) -> None:
    """Every flag of one of the scripts, and `--reference_compat`."""
    for name in ("data_dir", "output_dir"):
        command.add_argument(f"--{name}", type=Path, required=True, metavar="DIR")
    for name in ("model_type", "model_name_or_path", "task_name"):
        command.add_argument(f"--{name}", required=True)
    if layout == "pabee":
        command.add_argument(
            "--patience", type=_patiences, default=[0], metavar="N,N", help="0: full depth (default: 0)"
        )
        command.add_argument(
            "--regression_threshold", type=float, default=0.0, help="STS-B: what two exits may differ by"
        )
    else:
        command.add_argument("--plot_data_dir", default="./plotting/", metavar="DIR", help="where the npy files go")
        command.add_argument(
            "--early_exit_entropy", type=float, default=-1.0, help="nats; below 0 no exit fires (default: -1)"
        )
    for name, text in (SWITCHES | (DEEBERT_SWITCHES if layout == "deebert" else {})).items():
        command.add_argument(f"--{name}", action="store_true", help=text)
    for name, (default, text) in NUMBERS.items():
        command.add_argument(f"--{name}", type=type(default), default=default, help=f"{text} (default: %(default)s)")
    if layout == "deebert":
        command.set_defaults(per_gpu_eval_batch_size=8, logging_steps=50, save_steps=50)
    for name in ("config_name", "tokenizer_name", "cache_dir", "server_ip", "server_port"):
        command.add_argument(f"--{name}", default="", help=argparse.SUPPRESS)
    command.add_argument("--fp16_opt_level", default="O1", help=argparse.SUPPRESS)
    command.add_argument(
        "--reference_compat", action="store_true", help="with the original's quirks: see docs/differences.md"
    )


def _patiences(text: str) -> list[int]:
    """`3,4,5` -> [3, 4, 5]."""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"must be counts with commas between them, such as 3,4,5, found {text!r}")
    return [int(number) for number in text.split(",")]


def check_flags(options: argparse.Namespace) -> list[str]:
    """Refuse what cannot be done.

    Returns:
        A line for each flag that is not read.

    Raises:
        UserError: the flags contradict each other, or ask for what ExitBench does not do.
    """
    if not (options.do_train or options.do_eval):
        raise UserError("nothing to do: give --do_train, --do_eval or both")
    for name in ("adam_epsilon", "max_grad_norm", "local_rank"):
        only, found = NUMBERS[name][0], getattr(options, name)
        if found != only:
            raise UserError(f"--{name}: must be {only} here, found {found}: leave it out")
    for name in ("config_name", "tokenizer_name"):
        if found := getattr(options, name):
            raise UserError(f"--{name} {found}: must stand in the model's own folder: put it there and leave this out")
    for name in ("per_gpu_train_batch_size", "per_gpu_eval_batch_size", "gradient_accumulation_steps"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}: must be at least 1, found {getattr(options, name)}")
    if options.do_train and not options.overwrite_output_dir and _filled(options.output_dir):
        raise UserError(f"{str(options.output_dir)!r} is not empty: add --overwrite_output_dir, or give another folder")
    asks_exits = options.script == "deebert" or options.patience != [0]
    if options.reference_compat and options.do_eval and asks_exits and options.per_gpu_eval_batch_size != 1:
        raise UserError(
            f"--per_gpu_eval_batch_size: the original takes 1 row at a time, found {options.per_gpu_eval_batch_size}; "
            "without --reference_compat any number goes"
        )
    return [f"--{name} is not read: {instead}" for name, instead in NOT_READ.items() if getattr(options, name)]


def check_task(options: argparse.Namespace, task: "BaseTask") -> None:
    """Refuse exits that a regression cannot take."""
    if not task.regression:
        return
    if options.script == "deebert" and options.early_exit_entropy >= 0:
        raise UserError(
            f"--early_exit_entropy: needs class probabilities, {options.task_name} is a regression: leave it out"
        )
    if options.script == "pabee" and options.patience != [0] and options.regression_threshold <= 0:
        raise UserError("--regression_threshold: must be above 0 for two exits to agree: add 0.1, for example")


def _filled(folder: Path) -> bool:
    return folder.exists() and any(folder.iterdir())
