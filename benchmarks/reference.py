"""PABEE's and DeeBERT's own command lines over our fine-tuning, our policies and our programs.

Checkpoints are written and read in the references' layouts (`models/reference.py`), scores are dev's, and the network
runs on OpenVINO in float32 with its exits inside. Flags: `benchmarks/reference_flags.py`; what differs from the
originals: docs/differences.md.
"""

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.reference_flags import check_flags, check_task
from benchmarks.reference_training import check_type, train
from benchmarks.session import Say
from models.config import UserError
from models.cpu import processors
from models.data import Rows
from models.encoding import Padding, collate, encode
from models.ops import NumpyOps
from models.policies import Entropy, Fixed, Patience, Policy, entropy
from models.reference import PICKLED, Imported, read_reference, task_named
from models.tasks import Task, TaskData
from quant.engine import OpenVino
from quant.programs import EngineSession, Inputs, Program
from quant.recipes import Float32, apply_recipe

NAMES = {"accuracy": "acc", "f1": "f1", "matthews": "mcc", "pearson": "pearson", "spearman": "spearmanr"}
# What DeeBERT's files hold of a task with several metrics: the first of these that it has.
WANTED = ("spearmanr", "f1", "mcc", "acc", "mnli/acc")


class Answers(NamedTuple):
    """One pass over a split: scores by the references' names, the layer each row left at [N], and seconds."""

    scores: dict[str, float]
    exit_layer: np.ndarray
    seconds: float


class Opened(NamedTuple):
    """A reference's folder, ready to answer."""

    imported: Imported
    session: EngineSession
    programs: dict[str, Program]


def run(options: argparse.Namespace, say: Say) -> int:
    """Fine-tune, evaluate, or both, as the flags say.

    Raises:
        UserError: a flag, the data, the model or a checkpoint cannot be used.
    """
    for note in check_flags(options):
        say(f"Note: {note}")
    task = task_named(options.task_name)
    check_task(options, task)
    data = task.load(options.data_dir, options.seed)
    if options.do_train:
        train(options, task, data, say)
    if options.do_train and options.script == "deebert" and options.eval_after_first_stage:
        # The second stage leaves these weights as they are: what they score now is what they scored then.
        say("After the first stage:")
        _scored(options, _opened(options, task, options.output_dir), Fixed(), data, "", say)
    for folder in _folders(options) if options.do_eval else []:
        prefix = "" if folder == options.output_dir else folder.name
        say(f"Evaluation for checkpoint {prefix}".rstrip())
        opened = _opened(options, task, folder)
        evaluate = _evaluate_pabee if options.script == "pabee" else _evaluate_deebert
        evaluate(options, opened, data, prefix, say)
    return 0


def _folders(options: argparse.Namespace) -> list[Path]:
    if not options.eval_all_checkpoints:
        return [options.output_dir]
    found = sorted(path.parent for path in options.output_dir.rglob(PICKLED))
    if not found:
        raise UserError(f"--eval_all_checkpoints: {str(options.output_dir)!r} holds no {PICKLED}")
    return found


def _opened(options: argparse.Namespace, task: Task, folder: Path) -> Opened:
    imported = read_reference(options.script, folder, task, options.max_seq_length)
    check_type(options, imported.network.backbone.config.model_type, str(folder))
    OpenVino().check()
    session = OpenVino().open(apply_recipe(Float32(), imported.network), len(processors()))
    return Opened(imported, session, {})


def _batches(options: argparse.Namespace, opened: Opened, rows: Rows) -> list[Inputs]:
    encoded = encode(rows, opened.imported.tokenizer, options.max_seq_length)
    padding: Padding = "max_length" if options.reference_compat else "longest"
    pad, size = opened.imported.network.backbone.config.pad_token_id, options.per_gpu_eval_batch_size
    cuts = [range(i, min(i + size, len(rows))) for i in range(0, len(rows), size)]
    return [collate(encoded, cut, pad, padding, options.max_seq_length) for cut in cuts]


def _answered(options: argparse.Namespace, opened: Opened, policy: Policy, rows: Rows, split: str) -> Answers:
    """What the network answers for the rows of a split, leaving as `policy` says."""
    network, task = opened.imported.network, opened.imported.task
    exits = list(range(1, network.num_layers + 1))
    if policy.kind not in opened.programs:
        opened.programs[policy.kind] = opened.session.with_exits(policy, exits)
    program, position, outputs = opened.programs[policy.kind], 0, []
    batches = _batches(options, opened, rows)
    started = time.perf_counter()
    for batch in batches:
        size = len(batch["input_ids"])
        outputs.append(program.run(batch, policy.dials(np.arange(position, position + size))))
        position += size
    seconds = time.perf_counter() - started
    logits = np.concatenate([output.logits for output in outputs])
    exit_layer = np.concatenate([output.exit_layer for output in outputs])
    if options.reference_compat and opened.imported.off_ramp and isinstance(policy, Entropy):
        asked = np.concatenate([_off_ramp(opened.imported, batch) for batch in batches])
        sure = (exit_layer == network.num_layers) & (entropy(NumpyOps(), asked) < policy.threshold)
        logits = np.where(sure[:, None], asked, logits)
    return Answers(_scores(task, rows, logits, split), exit_layer, seconds)


@torch.no_grad()
def _off_ramp(imported: Imported, inputs: Inputs) -> np.ndarray:
    """Logits [B, C] of DeeBERT's off-ramp after the last layer, which nothing trained."""
    network = imported.network
    name = f"{network.backbone.config.model_type}.encoder.highway.{network.num_layers - 1}"

    def linear(part: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, *(imported.off_ramp[f"{name}.{part}.{kind}"] for kind in ("weight", "bias")))

    states, _ = network.hidden_states(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    return linear("classifier", torch.tanh(linear("pooler.dense", states[-1][:, 0]))).numpy()


def _scores(task: Task, rows: Rows, logits: np.ndarray, split: str) -> dict[str, float]:
    """Scores by the references' names, the means they add to pairs among them."""
    scores = {NAMES[name]: score for name, score in task.metrics(rows.labels, task.predictions(logits)).items()}
    if task.kind == "mnli":
        return {"mnli-mm/acc" if split == "dev_mismatched" else "mnli/acc": scores["acc"]}
    for mean, pair in (("acc_and_f1", ("acc", "f1")), ("corr", ("pearson", "spearmanr"))):
        if set(pair) <= set(scores):
            scores[mean] = (scores[pair[0]] + scores[pair[1]]) / 2
    return scores


def _scored(
    options: argparse.Namespace, opened: Opened, policy: Policy, data: TaskData, prefix: str, say: Say
) -> Answers:
    """Answer every dev split, say its scores, and write them to eval_results.txt; the first split's answers."""
    found = []
    for split, folder in (("dev", options.output_dir), ("dev_mismatched", Path(f"{options.output_dir}-MM"))):
        if split not in data.splits:
            continue
        answers = _answered(options, opened, policy, data.splits[split], split)
        lines = [f"{name} = {score}" for name, score in sorted(answers.scores.items())]
        for line in lines:
            say(f"  {line}")
        (folder / prefix).mkdir(parents=True, exist_ok=True)
        (folder / prefix / "eval_results.txt").write_text("".join(f"{line}\n" for line in lines))
        found.append(answers)
    return found[0]


def _evaluate_pabee(options: argparse.Namespace, opened: Opened, data: TaskData, prefix: str, say: Say) -> None:
    num_layers, regression = opened.imported.network.num_layers, opened.imported.task.regression
    name = "Speed Up" if options.reference_compat else "Layer Saving"
    for patience in options.patience:
        threshold = {"regression_threshold": options.regression_threshold} if regression and patience else {}
        answers = _scored(options, opened, Patience(patience=patience, **threshold), data, prefix, say)
        if patience:
            mean = answers.exit_layer.mean()
            say(
                f"*** Patience = {patience} Avg. Inference Layers = {mean:.2f} {name} = {1 - mean / num_layers:.2f} ***"
            )


def _evaluate_deebert(options: argparse.Namespace, opened: Opened, data: TaskData, prefix: str, say: Say) -> None:
    num_layers, tau = opened.imported.network.num_layers, options.early_exit_entropy
    answers = _scored(options, opened, Entropy(threshold=tau) if tau >= 0 else Fixed(), data, prefix, say)
    wanted, plots = _wanted(answers.scores), _plots(options)
    say(f"Eval time: {answers.seconds}")
    if options.eval_highway:
        counts = {layer: int((answers.exit_layer == layer).sum()) for layer in range(1, num_layers + 1)}
        cost = float(answers.exit_layer.mean() / num_layers)
        say(f"Exit layer counter: {counts}")
        say(f"Expected saving: {cost if options.reference_compat else 1 - cost}")
        if tau >= 0:
            plots.mkdir(parents=True, exist_ok=True)
            held: Any = [counts, answers.seconds, cost, wanted]
            np.save(plots / f"entropy_{tau}.npy", np.array(held, dtype=object))
            say(f"Entropy={tau}\tResult={100 * wanted:.2f}")
    say(f"Result: {wanted}")
    if options.eval_each_highway:
        each = _each_layer(options, opened, data.splits["dev"])
        plots.mkdir(parents=True, exist_ok=True)
        np.save(plots / "each_layer.npy", np.array(each))
        say("Score of each layer: " + " ".join(f"{100 * score:.2f}" for score in each))


def _each_layer(options: argparse.Namespace, opened: Opened, rows: Rows) -> list[float]:
    """What each exit scores on dev, from one pass over all."""
    recorder = opened.session.recorder(list(range(1, opened.imported.network.num_layers + 1)))
    logits = np.concatenate([recorder(batch) for batch in _batches(options, opened, rows)], axis=1)
    return [_wanted(_scores(opened.imported.task, rows, exit_logits, "dev")) for exit_logits in logits]


def _wanted(scores: dict[str, float]) -> float:
    return next(scores[name] for name in WANTED if name in scores)


def _plots(options: argparse.Namespace) -> Path:
    """Where the npy files go: below --plot_data_dir, under the model's path."""
    name = options.model_name_or_path
    return Path(f"{options.plot_data_dir}/{name[2:] if options.reference_compat else name.lstrip('./')}")
