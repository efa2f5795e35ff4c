"""LPOT's modes `accuracy` and `benchmark`: what one model scores on dev, or how fast it answers, in LPOT's lines.

A checkpoint is measured whole and without exits, as LPOT measures its baseline: in float32, or in INT8, quantized on
the spot. An exported artefact is measured with its exits. Nothing is recorded: that is what suites do, with rivals.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import TypeAdapter

import benchmarks.suite as suites
import benchmarks.tuning as tunings
from models.checkpoints import is_checkpoint, load_checkpoint
from models.config import UserError
from models.encoding import collate, encode
from models.policies import check_finite
from models.tasks import Rows, Task
from models.training import trained_on
from quant import artefact
from quant.engine import OpenVino
from quant.recipes import Float32, Int8Static, apply_recipe, calibration_inputs

# What a checkpoint is quantized to; the default of `python -m quant export`, too.
INT8 = Int8Static(observer="kl")
# Calls before those that count: a tuning's default.
WARM_UP = tunings.Performance().warmup


class Model(NamedTuple):
    """What is measured.

    Attributes:
        name: what it is, in words.
        task: what it was trained on.
        dev: the task's N rows of dev.
        inputs: positions in dev -> those rows, tokenized and padded.
        run: inputs of B rows -> their logits, probabilities or values, [B, C].
        rows_alone: B must be 1.
    """

    name: str
    task: Task
    dev: Rows
    inputs: Callable[[Sequence[int]], Any]
    run: Callable[[Any], np.ndarray]
    rows_alone: bool = False


def measure(options: argparse.Namespace) -> list[str]:
    """The lines of `accuracy` or `benchmark`.

    Raises:
        UserError: no model, a model that is not what the options say, or counts below 1.
    """
    if min(options.batch_size, options.iters) < 1:
        raise UserError(f"--batch_size and --iters must be at least 1, found {options.batch_size} and {options.iters}")
    int8 = options.int8 == "true"
    folder = options.config if int8 and options.config is not None else options.input_model
    if folder is None:
        raise UserError("--input_model is required: a checkpoint folder, or a folder that was exported")
    model = open_model(folder, int8, options.topology, options.dataset_location)
    if model.rows_alone and options.batch_size > 1:
        raise UserError(f"{str(folder)!r} takes rows one by one: --batch_size=1, found {options.batch_size}")
    return (accuracy if options.command == "accuracy" else benchmark)(model, options)


def accuracy(model: Model, options: argparse.Namespace) -> list[str]:
    """The headline score over all of dev, as a suite records it.

    Raises:
        UserError: answers that are NaN or infinite.
    """
    size, rows = options.batch_size, range(len(model.dev))
    answers = np.concatenate([model.run(model.inputs(rows[first : first + size])) for first in rows[::size]])
    check_finite(answers)
    metric = model.task.headline_metric
    score = model.task.metrics(model.dev.labels, model.task.predictions(answers))[metric]
    return [
        f"{model.name}; {metric} over {len(rows)} rows of dev",
        f"Accuracy: {score:.5f}",
        f"Batch size = {size}",
    ]


def benchmark(model: Model, options: argparse.Namespace) -> list[str]:
    """Throughput, and LPOT's latency: the share of one row in a call; padded arrays in, numpy out."""
    size = options.batch_size
    # Short of rows, calls come back to the first ones.
    rows = np.resize(np.arange(len(model.dev)), (WARM_UP + options.iters, size)).tolist()
    seconds = np.array([_seconds(model, inputs) for inputs in [model.inputs(call) for call in rows]])[WARM_UP:]
    p50, p99 = 1000 * np.quantile(seconds, [0.5, 0.99])
    throughput = size * len(seconds) / seconds.sum()
    return [
        f"{model.name}; {len(seconds)} calls after {WARM_UP} of warm-up: p50 {p50:.3f} ms, p99 {p99:.3f} ms a call",
        f"Throughput: {throughput:.3f} samples/sec",
        f"Latency: {1000 / throughput:.3f} ms",
        f"Batch size = {size}",
    ]


def _seconds(model: Model, inputs: Any) -> float:
    started = time.perf_counter()
    model.run(inputs)
    return time.perf_counter() - started


def open_model(folder: Path, int8: bool, topology: str | None, location: Path | None) -> Model:
    """Ready a checkpoint or an exported artefact, on all cores.

    Raises:
        UserError: it is neither, cannot be read, or is an artefact in other numbers; the topology is of another task,
            or the data is missing.
    """
    if (folder / artefact.DESCRIPTION).is_file():
        return _open_artefact(folder, int8, topology, location)
    if is_checkpoint(folder):
        return _open_checkpoint(folder, int8, topology, location)
    raise UserError(f"{str(folder)!r} is neither a checkpoint nor an exported model: give a folder that is one")


def _check_topology(topology: str | None, folder: Path, task: Task) -> None:
    """Refuse the name of a shipped tuning or suite of other tasks."""
    if topology is None:
        return
    tuning = tunings.SHIPPED / f"{topology}.yaml"
    if tuning.is_file():
        tasks = [tunings.read_tuning(tuning).model.task.name]
    else:
        tasks = [each.name for each in suites.read_suite(suites.SHIPPED / f"{topology}.yaml").tasks]
    if task.name not in tasks:
        raise UserError(f"--topology {topology} is of {', '.join(tasks)}, but {str(folder)!r} of {task.name}")


def _open_checkpoint(folder: Path, int8: bool, topology: str | None, location: Path | None) -> Model:
    checkpoint, recipe = load_checkpoint(folder), INT8 if int8 else Float32()
    spec, seed = trained_on(checkpoint)
    _check_topology(topology, folder, spec.task)
    data, length = spec.task.load(location, seed), spec.train.max_seq_length
    pad, depth = checkpoint.network.backbone.config.pad_token_id, checkpoint.network.num_layers
    calibration = calibration_inputs(recipe, data.splits["fit"], checkpoint.tokenizer, length, pad)
    segments = apply_recipe(recipe, checkpoint.network, calibration)
    program = OpenVino().open(segments, suites.Shape().thread_count).without_exits(depth)
    dev = encode(data.splits["dev"], checkpoint.tokenizer, length)
    return Model(
        name=f"{folder}: {suites.recipe_label(recipe)} on openvino, {depth} layers without exits",
        task=spec.task,
        dev=data.splits["dev"],
        inputs=lambda rows: collate(dev, rows, pad, "longest", length),
        run=lambda inputs: program.run(inputs, {}).logits,
    )


def _open_artefact(folder: Path, int8: bool, topology: str | None, location: Path | None) -> Model:
    try:
        model = artefact.EarlyExitModel.load(folder, suites.Shape().thread_count)
    except artefact.ArtefactError as error:
        raise UserError(str(error)) from error
    said, recipe = model.description, model.description["recipe"]["kind"]
    if recipe.startswith("int8") != int8:
        raise UserError(f"{str(folder)!r} holds {recipe}: give --int8={'false' if int8 else 'true'}")
    task: Task = TypeAdapter(Task).validate_python(said["trained_on"]["task"])
    _check_topology(topology, folder, task)
    dev = task.load(location, said["trained_on"]["seed"]).splits["dev"]
    dials = ", ".join(f"{name} {value:g}" for name, value in said["dials"].items())
    texts: list[Any] = [texts if len(texts) == 2 else texts[0] for texts in dev.texts]
    return Model(
        name=f"{folder}: {recipe} on {said['engine']}, exits {said['exits']} with {said['policy']} ({dials})",
        task=task,
        dev=dev,
        inputs=lambda rows: model.inputs([texts[row] for row in rows]),
        run=lambda inputs: model.run(*inputs)["scores"],
        rows_alone=said["rows_alone"],
    )
