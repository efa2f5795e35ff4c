"""Checkpoints of the reference implementations: read into ours, and written back.

The references are the research projects `bert-loses-patience` (PABEE) and `deebert` (DeeBERT) of `transformers`; keys
are named as version 3.5.1 names them, the last that they ask for.
"""

import copy
import hashlib
import pickle
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedTokenizerFast

from models.checkpoints import CONFIG, WEIGHTS, load_checkpoint, save_checkpoint
from models.config import UserError, first_line, unknown
from models.families import UNREADABLE, check_length, load_tokenizer
from models.glue import LAYOUTS as GLUE
from models.glue import GlueTask
from models.methods import DeeBert, Method, Pabee
from models.network import MultiExitNetwork
from models.tasks import Task

State = dict[str, torch.Tensor]

PICKLED = "pytorch_model.bin"
# What a checkpoint of ours has no place for, kept beside its weights: DeeBERT's unused exit, ALBERT's vocabulary.
OFF_RAMP, SENTENCE_PIECES = "last_off_ramp.safetensors", "spiece.model"
# RoBERTa's MNLI classes in the references are contradiction, neutral, entailment; ours, as BERT's, swap the last two.
SWAPPED = [0, 2, 1]
# Tasks that the references write another way.
TASK_NAMES = {"sst2": "sst-2", "stsb": "sts-b"}


class Layout(NamedTuple):
    """A reference's checkpoints: how their exits were trained, and the class of each family."""

    method: Method
    classes: dict[str, str]


LAYOUTS = {
    "pabee": Layout(
        Pabee(),
        {"bert": "BertForSequenceClassificationWithPabee", "albert": "AlbertForSequenceClassificationWithPabee"},
    ),
    "deebert": Layout(
        DeeBert(), {"bert": "DeeBertForSequenceClassification", "roberta": "DeeRobertaForSequenceClassification"}
    ),
}


class Imported(NamedTuple):
    """What a reference's folder holds.

    Attributes:
        off_ramp: the tensors of DeeBERT's off-ramp after the last layer, by the reference's names.
        weights: the file they were read from.
    """

    network: MultiExitNetwork
    tokenizer: PreTrainedTokenizerFast
    task: Task
    off_ramp: State
    weights: Path


def read_reference(layout: str, source: Path, task: Task | None, max_seq_length: int) -> Imported:
    """Read a reference's checkpoint.

    Args:
        layout: one of `LAYOUTS`.
        source: holds config.json, pytorch_model.bin or model.safetensors, and the tokenizer's files.
        task: what it was trained on, where its config.json does not say (`finetuning_task`).
        max_seq_length: tokens a row is cut to.

    Raises:
        UserError: when a file is missing, unreadable or of another layout, or does not fit the task.
    """
    config, method = _read_config(layout, source), LAYOUTS[layout].method
    task = task or _own_task(config, source)
    if config.num_labels != task.num_labels:
        raise UserError(f"{str(source)!r} answers {config.num_labels} labels; task {task.name!r} has {task.num_labels}")
    check_length(config, max_seq_length)
    weights = next((source / name for name in (WEIGHTS, PICKLED) if (source / name).is_file()), None)
    if weights is None:
        raise UserError(f"{str(source)!r} holds neither {WEIGHTS} nor {PICKLED}: give the folder the reference wrote")
    try:
        backbone = AutoModel.from_config(config, attn_implementation="sdpa")
        tokenizer = load_tokenizer(str(source))
    except (*UNREADABLE, ImportError) as error:
        raise UserError(f"{str(source)!r} cannot be read: {first_line(error)}") from error
    network = MultiExitNetwork(backbone, method.exits, task.num_labels)
    state = _read_state(weights)
    _check(state, layout, network, weights)
    _reorder(state, network, task.kind)
    network.load_state_dict({ours: state[theirs] for ours, theirs in _names(layout, network).items()})
    off_ramp = {name: state[name].contiguous() for name in _unused(layout, network)}
    return Imported(network.eval(), tokenizer, task, off_ramp, weights)


def import_checkpoint(layout: str, source: Path, folder: Path, task: Task | None, max_seq_length: int) -> Task:
    """Read a reference's checkpoint as `read_reference` does, and write it as one of ours to a new or empty folder.

    Returns:
        The task.

    Raises:
        UserError: as `read_reference`, or the folder is not empty.
    """
    _refuse_filled(folder)
    imported = read_reference(layout, source, task, max_seq_length)
    folder.mkdir(parents=True, exist_ok=True)
    if imported.off_ramp:
        save_file(imported.off_ramp, folder / OFF_RAMP)
    if (source / SENTENCE_PIECES).is_file():
        shutil.copy(source / SENTENCE_PIECES, folder)
    described = {"task": imported.task.model_dump(), "method": LAYOUTS[layout].method.model_dump()}
    # Of the spec only what is known: seed, epochs and rates are not.
    known = described | {"backbone": str(source), "train": {"max_seq_length": max_seq_length}}
    digest = hashlib.sha256(imported.weights.read_bytes()).hexdigest()
    training = {"imported": {"layout": layout, "weights_hash": digest}, "spec": known}
    save_checkpoint(folder, imported.network, imported.tokenizer, described, training)
    return imported.task


def export_checkpoint(layout: str, source: Path, folder: Path) -> None:
    """Write one of our checkpoints as the reference would, to a new or empty folder.

    Raises:
        UserError: when the checkpoint cannot be read, or its exits are not those of the layout.
    """
    _refuse_filled(folder)
    checkpoint = load_checkpoint(source)
    network, method = checkpoint.network, checkpoint.config["method"]["kind"]
    check_family(network.backbone.config, layout, str(source))
    if method == "classifier" or network.exits_config != LAYOUTS[layout].method.exits:
        exits = ", ".join(f"{name} {value}" for name, value in network.exits_config.model_dump().items())
        raise UserError(f"layout {layout!r} has no place for the exits of {str(source)!r}: method {method}, {exits}")
    off_ramp = load_file(source / OFF_RAMP) if (source / OFF_RAMP).is_file() else {}
    write_reference(layout, network, checkpoint.tokenizer, checkpoint.config["task"]["kind"], folder, off_ramp)
    if (source / SENTENCE_PIECES).is_file():
        shutil.copy(source / SENTENCE_PIECES, folder)


def write_reference(
    layout: str,
    network: MultiExitNetwork,
    tokenizer: PreTrainedTokenizerFast,
    task: str,
    folder: Path,
    off_ramp: State | None = None,
) -> None:
    """Write a network as the reference would: config.json, pytorch_model.bin and the tokenizer's files.

    DeeBERT's classes have an off-ramp after the last layer, too, which nothing trains. Without an imported one
    (`off_ramp`) it is a copy of the last exit, so that the reference answers there as the network does.

    Args:
        layout: one of `LAYOUTS`; the network is of one of its families and has its exits.
        task: the kind of a task.
        folder: where to write, over what is there.
    """
    ours = network.state_dict()
    state = {theirs: ours[name] for name, theirs in _names(layout, network).items()}
    state[_positions(network)] = torch.arange(network.backbone.config.max_position_embeddings)[None]
    state |= off_ramp or {unused: state[used].clone() for unused, used in _unused(layout, network).items()}
    _reorder(state, network, task)
    config = copy.deepcopy(network.backbone.config)
    config.update(
        {
            "architectures": [LAYOUTS[layout].classes[config.model_type]],
            "num_labels": network.num_labels,
            "finetuning_task": TASK_NAMES.get(task, task),
        }
    )
    config.save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
    # The tokenizers of the references read vocabularies, not tokenizer.json.
    tokenizer.backend_tokenizer.model.save(str(folder))
    torch.save(state, folder / PICKLED)


def _refuse_filled(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{str(folder)!r} is not empty: give a new folder to write to")


def _read_config(layout: str, source: Path) -> PreTrainedConfig:
    if not (source / CONFIG).is_file():
        raise UserError(f"{str(source)!r} holds no {CONFIG}: give the folder the reference wrote")
    try:
        config = AutoConfig.from_pretrained(str(source))
    except UNREADABLE as error:
        raise UserError(f"{str(source / CONFIG)!r} cannot be read: {first_line(error)}") from error
    check_family(config, layout, str(source))
    return config


def check_family(config: PreTrainedConfig, layout: str, source: str) -> None:
    """Refuse a backbone for which the reference has no class."""
    families = LAYOUTS[layout].classes
    if config.model_type not in families:
        raise UserError(
            f"layout {layout!r} has families {' and '.join(families)}; {source!r} is of {config.model_type!r}"
        )


def task_named(name: str) -> Task:
    """The GLUE task that the references call so, in capitals or not.

    Raises:
        UserError: there is none.
    """
    kind = {theirs: ours for ours, theirs in TASK_NAMES.items()}.get(name.lower(), name.lower())
    if kind not in GLUE:
        raise UserError(unknown("task", name, [TASK_NAMES.get(task, task) for task in GLUE]))
    return GlueTask(kind=kind)  # pyright: ignore[reportArgumentType]


def _own_task(config: PreTrainedConfig, source: Path) -> Task:
    """The GLUE task that a reference noted in its configuration."""
    noted = getattr(config, "finetuning_task", None)
    try:
        return task_named(str(noted))
    except UserError as error:
        raise UserError(
            f"{str(source / CONFIG)!r} names no GLUE task in finetuning_task ({noted!r}): give --task"
        ) from error


def _read_state(path: Path) -> State:
    """Tensors by name, and nothing else: unpickling runs no code."""
    try:
        state = load_file(path) if path.name == WEIGHTS else torch.load(path, map_location="cpu", weights_only=True)
    except (*UNREADABLE, pickle.UnpicklingError, EOFError) as error:
        raise UserError(f"{str(path)!r} cannot be read as weights alone: {first_line(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise UserError(f"{str(path)!r} is no state dict: it must hold tensors by name, and nothing else")
    return dict(state)


def _check(state: State, layout: str, network: MultiExitNetwork, path: Path) -> None:
    """Refuse missing and unexpected keys, wrong shapes, and positions that do not count from 0."""
    ours, names = network.state_dict(), _names(layout, network)
    shapes = {theirs: ours[name].shape for name, theirs in names.items()}
    shapes |= {unused: shapes[used] for unused, used in _unused(layout, network).items()}
    family, positions = network.backbone.config.model_type, _positions(network)
    kind = f"layout {layout!r} of {family} with {network.num_layers} layers"
    if missing := [name for name in shapes if name not in state]:
        raise UserError(f"{str(path)!r} lacks {missing[0]!r}, which {kind} has ({len(missing)} missing)")
    if unexpected := [name for name in state if name not in [*shapes, positions]]:
        raise UserError(f"{str(path)!r} holds {unexpected[0]!r}, which {kind} has not ({len(unexpected)} unexpected)")
    for name, shape in shapes.items():
        if state[name].shape != shape:
            raise UserError(f"{str(path)!r}: {name!r} is {[*state[name].shape]}; its {CONFIG} makes it {[*shape]}")
    counted = torch.arange(network.backbone.config.max_position_embeddings)[None]
    if positions in state and not torch.equal(state[positions], counted):
        raise UserError(f"{str(path)!r}: {positions!r} must count from 0 to {counted.numel() - 1}; it does not")


def _names(layout: str, network: MultiExitNetwork) -> dict[str, str]:
    """The reference's name of each parameter of ours."""
    family, last = network.backbone.config.model_type, str(network.num_layers - 1)
    names = {}
    for name in network.state_dict():
        part, _, rest = name.partition(".")
        index, _, kind = rest.partition(".")
        if part == "backbone":
            names[name] = f"{family}.{rest}"
        elif part == "poolers" and (layout == "pabee" or index == last):
            names[name] = f"{family}.pooler.{kind}" if family == "albert" else f"{family}.pooler.dense.{kind}"
        elif layout == "pabee":
            names[name] = name
        elif index == last:
            names[name] = f"classifier.{kind}"
        else:
            off_ramp = "pooler.dense" if part == "poolers" else "classifier"
            names[name] = f"{family}.encoder.highway.{index}.{off_ramp}.{kind}"
    return names


def _unused(layout: str, network: MultiExitNetwork) -> dict[str, str]:
    """The names of the off-ramp that DeeBERT never uses, each with that of the last exit in its place."""
    if layout == "pabee":
        return {}
    family = network.backbone.config.model_type
    off_ramp = f"{family}.encoder.highway.{network.num_layers - 1}"
    pairs = {"pooler.dense": f"{family}.pooler.dense", "classifier": "classifier"}
    return {
        f"{off_ramp}.{part}.{kind}": f"{used}.{kind}" for part, used in pairs.items() for kind in ("weight", "bias")
    }


def _positions(network: MultiExitNetwork) -> str:
    """A buffer that the references save and newer versions of `transformers` do not: 0, 1, 2, ..."""
    return f"{network.backbone.config.model_type}.embeddings.position_ids"


def _reorder(state: State, network: MultiExitNetwork, task: str) -> None:
    """Turn the classes of a state of the reference's into ours in place, or back."""
    if task == "mnli" and network.backbone.config.model_type == "roberta":
        state |= {name: state[name][SWAPPED] for name in state if "classifier" in name.split(".")}
