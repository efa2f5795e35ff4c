"""Fine-tuning from the flags of PABEE's and DeeBERT's own scripts, into a folder such as theirs."""

import argparse
import math
import shutil
from pathlib import Path

from pydantic import ValidationError

from benchmarks.session import Say
from models.checkpoints import WEIGHTS, load_checkpoint
from models.config import UserError, explain
from models.families import Pretrained, check_length, load_pretrained, resolve_name
from models.methods import DeeBert, StageConfig, TrainConfig
from models.network import MultiExitNetwork
from models.reference import LAYOUTS, SENTENCE_PIECES, check_family, write_reference
from models.tasks import Task, TaskData
from models.training import TrainingSpec, fine_tune


def train(options: argparse.Namespace, task: Task, data: TaskData, say: Say) -> None:
    """Fine-tune on `fit` and write --output_dir as the original does.

    Our checkpoint goes into a folder inside: unlike the files beside it, it says how it was fine-tuned. An interrupted
    fine-tuning goes on; a finished one is done again.

    Raises:
        UserError: a flag or the pre-trained model cannot be used.
    """
    layout, output, name = options.script, options.output_dir, options.model_name_or_path
    backbone, tokenizer = load_pretrained(Pretrained(name=name))
    config = backbone.config
    check_family(config, layout, name)
    check_type(options, config.model_type, name)
    check_length(config, options.max_seq_length)
    if set(config.architectures or []) & set(LAYOUTS[layout].classes.values()):
        raise UserError(f"{name!r} is fine-tuned already, and no fine-tuning goes on from it: give a pre-trained model")
    lowers = tokenizer.tokenize("A") == tokenizer.tokenize("a")
    if lowers != options.do_lower_case and config.model_type != "roberta":
        say(f"Note: the tokenizer of {name} {'lowers' if lowers else 'keeps'} capitals, whatever --do_lower_case says")
    spec = training_spec(options, task, len(data.splits["fit"]))

    def write(network: MultiExitNetwork, folder: Path) -> None:
        write_reference(layout, network, tokenizer, task.kind, folder)
        pieces = Path(resolve_name(name)) / SENTENCE_PIECES
        if pieces.is_file():
            shutil.copy(pieces, folder)

    def on_step(step: int, network: MultiExitNetwork) -> None:
        if options.save_steps > 0 and step % options.save_steps == 0:
            write(network, output / f"checkpoint-{step}")

    ours = output / spec.folder_name(data.data_hash)
    if ours.exists():
        shutil.rmtree(ours)
    write(load_checkpoint(fine_tune(spec, data, ours, on_step)).network, output)
    (output / WEIGHTS).unlink(missing_ok=True)  # of an earlier model: whoever reads the folder would take them
    say(f"Saved: {output}; for a suite: checkpoints: [{{folder: {ours}}}]")


def check_type(options: argparse.Namespace, family: str, name: str) -> None:
    """Refuse a model that is not what --model_type says."""
    if options.model_type.lower() != family:
        raise UserError(f"--model_type {options.model_type}: {name!r} is of family {family}: give that")


def training_spec(options: argparse.Namespace, task: Task, rows: int) -> TrainingSpec:
    """The flags as a fine-tuning over `rows` rows of fit, which never stops early."""
    batch_size = options.per_gpu_train_batch_size * options.gradient_accumulation_steps
    steps_per_epoch = math.ceil(rows / batch_size)
    epochs, steps = options.num_train_epochs, math.ceil(steps_per_epoch * options.num_train_epochs)
    if options.max_steps > 0:
        # Half a step less, since what comes of it is rounded up; half a step more below, where it is rounded down.
        epochs, steps = (options.max_steps - 0.5) / steps_per_epoch, options.max_steps
    stage = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": options.learning_rate,
        "warmup": (options.warmup_steps + 0.5) / steps if options.warmup_steps > 0 else 0.0,
        "weight_decay": options.weight_decay,
        "evaluations_per_epoch": max(1, steps_per_epoch // max(1, options.logging_steps)),
        "patience": max(1, steps),
    }
    method = LAYOUTS[options.script].method
    try:
        return TrainingSpec(
            task=task,
            method=DeeBert(off_ramps=StageConfig(**stage)) if isinstance(method, DeeBert) else method,
            backbone=Pretrained(name=options.model_name_or_path),
            train=TrainConfig(**stage, max_seq_length=options.max_seq_length),
            seed=options.seed,
        )
    except ValidationError as error:
        raise explain(error, "fine-tuning") from error
