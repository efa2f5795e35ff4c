"""Export: a checkpoint, a recipe and a policy become one folder that `quant/artefact.py` serves."""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import openvino as ov

from models.checkpoints import Checkpoint
from models.config import UserError
from models.policies import Policy
from models.tasks import Task, TaskData
from models.training import trained_on
from quant import artefact
from quant.engine import SERVING, ServingEngine, cannot_run
from quant.footprint import resident_bytes
from quant.programs import Servable, unfit
from quant.recipes import Recipe, apply_recipe, calibration_inputs, check_fallback
from quant.texts import text_model

# What must be as it was measured; threads and hints are the server's.
SERVED_OPTIONS = ("INFERENCE_PRECISION_HINT", "DYNAMIC_QUANTIZATION_GROUP_SIZE")
TOOLCHAIN = ("torch", "transformers", "neural-compressor-pt")


class Exported(NamedTuple):
    """What an export took: seconds to quantize and convert, to write, and to load; bytes on disk and when served."""

    quantize_s: float
    write_s: float
    load_s: float
    size_bytes: int
    resident_bytes: int

    @property
    def served(self) -> str:
        """What it asks of a server."""
        sizes = f"{self.size_bytes / 1e6:.1f} MB on disk, {self.resident_bytes / 1e6:.1f} MB in memory"
        return f"{sizes}, loads in {self.load_s:.1f} s"


def export(
    folder: Path,
    checkpoint: Checkpoint,
    task: Task,
    data: TaskData | None,
    recipe: Recipe,
    policy: Policy,
    exits: Sequence[int],
    text: bool = False,
    engine: ServingEngine = SERVING["openvino"],
) -> Exported:
    """Write an artefact.

    Args:
        folder: where to; it must not exist, or be an earlier export.
        checkpoint: the trained network.
        task: what it was trained on.
        data: the task's rows, which INT8 recipes calibrate on and `text` is checked on; None where neither needs any.
        recipe: the numbers.
        policy: its kind is compiled in, its dials become the defaults.
        exits: the kept exits, ascending; the last one answers all rows left.
        text: whether to write the tokenizer as a graph, too, so that servers may pass strings (`quant/texts.py`).
        engine: what is to serve it.

    Raises:
        UserError: a folder in use, a policy that does not fit the task, exits that do not fit the network, or a
            tokenizer that OpenVINO has no operations for.
    """
    if problem := cannot_run(recipe.kind, engine, with_exits=True):
        raise UserError(problem)
    if text and engine.kind != "openvino":
        raise UserError(f"--text writes OpenVINO operations, which engine {engine.kind} has none of; leave it out")
    engine.check()
    _check(folder, checkpoint, task, policy, exits)
    check_fallback(recipe, checkpoint.network)
    started = time.perf_counter()
    spec, seed = trained_on(checkpoint)
    max_seq_length = spec.train.max_seq_length
    pad_token_id = checkpoint.network.backbone.config.pad_token_id
    fit = None if data is None else data.splits["fit"]
    calibration = calibration_inputs(recipe, fit, checkpoint.tokenizer, max_seq_length, pad_token_id)
    session = engine.open(apply_recipe(recipe, checkpoint.network, calibration), threads=0)
    assert isinstance(session, Servable), f"engine {engine.kind} writes no graphs"
    assert fit is not None or not text, "what OpenVINO tokenizes is compared on the task's rows"
    tokenize = text_model(checkpoint.tokenizer, max_seq_length, pad_token_id, fit) if text and fit is not None else None
    quantized = time.perf_counter()

    with _taking_the_place_of(folder) as unfinished:
        graph = session.save(policy, exits, unfinished)
        checkpoint.tokenizer.backend_tokenizer.save(str(unfinished / artefact.TOKENIZER))
        shutil.copy(artefact.__file__, unfinished / artefact.LOADER)
        names = [*graph, artefact.TOKENIZER, artefact.LOADER]
        if tokenize is not None:
            ov.save_model(tokenize, unfinished / artefact.TEXT_GRAPH)
            names += [artefact.TEXT_GRAPH, artefact.TEXT_WEIGHTS]
        description = {
            "schema": artefact.SCHEMA,
            "task": task.name,
            "trained_on": {"task": task.model_dump(), "seed": seed},
            "labels": None if task.regression else list(task.label_names),
            "policy": policy.kind,
            "dials": {name: float(value) for name, value in policy.dials(np.arange(1)).items()},
            "exits": list(exits),
            "num_layers": checkpoint.network.num_layers,
            "recipe": recipe.model_dump(),
            "max_seq_length": max_seq_length,
            "pad_token_id": pad_token_id,
            "engine": engine.kind,
            "options": {name: session.options[name] for name in SERVED_OPTIONS if name in session.options},
            "rows_alone": cannot_run(recipe.kind, SERVING[engine.kind], with_exits=True, batch_size=2) is not None,
            "checkpoint": {"method": checkpoint.config["method"]["kind"], "hash": checkpoint.hash},
            "toolchain": {name: version(name) for name in (engine.kind, *TOOLCHAIN)},
            "files": {name: artefact.file_hash(unfinished / name) for name in names},
        }
        (unfinished / artefact.DESCRIPTION).write_text(json.dumps(description, indent=2))
    written = time.perf_counter()
    artefact.EarlyExitModel.load(folder)
    loaded = time.perf_counter()
    size = sum(file.stat().st_size for file in folder.iterdir())
    row = np.zeros((1, max_seq_length), np.int64)
    inputs = {"input_ids": row, "attention_mask": row + 1, "token_type_ids": row}
    dials = {name: np.asarray(value, np.float32) for name, value in description["dials"].items()}
    resident = resident_bytes(folder / graph[0], inputs | dials, description["options"])
    return Exported(quantized - started, written - quantized, loaded - written, size, resident)


@contextmanager
def _taking_the_place_of(folder: Path) -> Iterator[Path]:
    """A folder to write to, which becomes `folder` once it is whole: a kill leaves the earlier one, or none."""
    unfinished = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    if folder.exists():
        shutil.rmtree(folder)
    unfinished.rename(folder)


def check_free(folder: Path) -> None:
    """Refuse to write over anything but an earlier export.

    Raises:
        UserError: the folder is in use.
    """
    if folder.exists() and not (folder / artefact.DESCRIPTION).is_file() and any(folder.iterdir()):
        raise UserError(f"{str(folder)!r} exists and is not an export: give another folder")


def _check(folder: Path, checkpoint: Checkpoint, task: Task, policy: Policy, exits: Sequence[int]) -> None:
    check_free(folder)
    if policy.timing_only:
        raise UserError(f"policy {policy.kind} is for timing only: export one that decides")
    if problem := unfit(policy, exits, checkpoint.network.num_layers, task):
        raise UserError(problem)
