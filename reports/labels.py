"""What things are called in tables and plots: short, readable, and the same wherever a run is shown."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.records import CheckpointInfo, RunRecord

# What a checkpoint's record holds beside its setting: what it is called, its seed, and what came of the fine-tuning.
OUTCOMES = {"name", "hash", "seed", "trained_seconds", "select_scores", "select_ece"}
RECIPE_ORDER = ["float32", "bfloat16", "float16", "int8_static", "int8_native", "int8_dynamic"]
ROLE_ORDER = ["no exits", "truncated", "exits never fire", "fixed exit", "early exit", "timing only"]
WITHOUT_EXITS = ROLE_ORDER[:2]


def role(record: RunRecord) -> str:
    """What a run is in a comparison: one of `ROLE_ORDER`."""
    if not record.with_exits:
        return "no exits" if is_full_depth(record) else "truncated"
    if record.policy["kind"] == "imposed":
        return "timing only"
    if record.policy["kind"] == "fixed":
        return "exits never fire" if is_full_depth(record) else "fixed exit"
    return "early exit"


def is_full_depth(record: RunRecord) -> bool:
    """Whether every row goes through all layers, by construction."""
    layers, told = num_layers(record), record.policy.get("layer")
    if not record.with_exits and record.exits and layers is not None:
        return record.exits[-1] == layers
    return record.policy["kind"] == "fixed" and (told is None or told == layers)


def num_layers(record: RunRecord) -> int | None:
    """L of the whole network, where the record knows its checkpoint or has counted exits."""
    if record.checkpoint is not None:
        return record.checkpoint.truncates or record.checkpoint.num_layers
    return next((len(counts) for counts in record.exit_counts.values()), None)


def exits_label(record: RunRecord) -> str:
    """`none`, `truncated@k`, or the kept exits, such as `[3, 4, 6]`."""
    if record.with_exits:
        return str(record.exits)
    if is_full_depth(record):
        return "none"
    return f"truncated@{record.exits[-1] if record.exits else record.policy['layer']}"


def policy_label(record: RunRecord) -> str:
    """`full depth`, `fixed@4`, `exits never fire`, or a policy's kind with its dials, such as `patience 3`."""
    policy = dict(record.policy)
    kind = policy.pop("kind")
    if kind == "fixed":
        if is_full_depth(record):
            return "exits never fire" if record.with_exits else "full depth"
        return f"fixed@{policy['layer'] or record.exits[-1]}"
    if kind == "patience" and record.num_classes > 1:
        policy.pop("regression_threshold", None)  # a dial of regression alone
    return " ".join([kind, *_dials(policy)])


def configuration_label(record: RunRecord) -> str:
    """Exits and policy in one phrase: `no exits`, `4 of 6 layers`, `entropy 0.2`, `entropy 0.2 at [3, 4, 6]`."""
    layers = num_layers(record)
    if not record.with_exits:
        if is_full_depth(record):
            return "no exits"
        depth = exits_label(record).removeprefix("truncated@")
        alone = ", trained alone" if record.checkpoint and record.checkpoint.method == "classifier" else ""
        return (f"{depth} of {layers} layers" if layers else f"{depth} layers") + alone
    all_kept = layers is not None and record.exits == list(range(1, layers + 1))
    return policy_label(record) if all_kept else f"{policy_label(record)} at {record.exits}"


def shape_label(shape: dict[str, Any]) -> str:
    """`batch 1, padding longest, threads 2`, in the order of the record; what is left to its default is not named."""
    defaults = {"instances": 1, "order": "given"}
    shown = {name: value for name, value in shape.items() if value not in (None, defaults.get(name))}
    named = {name.removesuffix("_size").replace("_", " "): value for name, value in shown.items()}
    return ", ".join(f"{name} {value}" for name, value in named.items())


def recipe_labels(records: Sequence[RunRecord]) -> dict[str, str]:
    """run_id -> recipe name, such as `float32` or `int8_static(kl)`.

    Options that tell two recipes of one folder apart are named: `int8_static(kl, calibration_rows=512)`.
    """
    options = {record.run_id: {k: v for k, v in record.recipe.items() if k != "kind"} for record in records}
    kinds = {record.run_id: str(record.recipe["kind"]) for record in records}
    values: dict[tuple[str, str], set[str]] = defaultdict(set)
    for run_id, given in options.items():
        for name, value in given.items():
            values[kinds[run_id], name].add(str(value))
    labels = {}
    for run_id, given in options.items():
        kind = kinds[run_id]
        named = [str(given["observer"])] if "observer" in given else []
        named += [f"{k}={v}" for k, v in given.items() if k != "observer" and len(values[kind, k]) > 1]
        labels[run_id] = f"{kind}({', '.join(named)})" if named else kind
    return labels


def setting(info: CheckpointInfo) -> str:
    """All that decided a checkpoint but for its seed: what fine-tunings with several seeds share."""
    return info.model_dump_json(exclude=OUTCOMES)


def setting_labels(records: Sequence[RunRecord]) -> dict[str, str]:
    """run_id -> the shortest name that tells a checkpoint's setting from the others of its task.

    Its method; or method and backbone; or these and the first few of the options in which settings of both differ that
    tell it from all others.
    """
    infos = {(record.task, setting(info)): info for record in records if (info := record.checkpoint) is not None}
    candidates, users = {}, defaultdict(set)
    for (task, key), info in infos.items():
        others = [other for (place, _), other in infos.items() if (place, other.method) == (task, info.method)]
        named = f"{info.method} {Path(info.backbone).name}"
        told = f"({', '.join(_differing(info, [other for other in others if other.backbone == info.backbone]))})"
        full = (info.method if len({other.backbone for other in others}) == 1 else named) + told
        candidates[task, key] = (info.method, named, full)
        for label in candidates[task, key]:
            users[task, label].add(key)
    return {
        record.run_id: next((label for label in labels if len(users[record.task, label]) == 1), labels[-1])
        for record in records
        if record.checkpoint is not None
        for labels in [candidates[record.task, setting(record.checkpoint)]]
    }


def model_labels(records: Sequence[RunRecord]) -> dict[str, str]:
    """run_id -> the shortest name that tells a checkpoint from the others of its task.

    Its setting's, and its seed where there are several; or, where two share even these, the checkpoint's own name.
    """
    settings = setting_labels(records)
    known = [(record, info) for record in records if (info := record.checkpoint) is not None]
    names: dict[tuple[str, str], set[str]] = defaultdict(set)
    candidates = {}
    for record, info in known:
        label = settings[record.run_id]
        candidates[record.run_id] = (label, f"{label}, {'imported' if info.seed is None else f'seed {info.seed}'}")
        for candidate in candidates[record.run_id]:
            names[record.task, candidate].add(info.name)
    return {
        record.run_id: next(
            (label for label in candidates[record.run_id] if len(names[record.task, label]) == 1), info.name
        )
        for record, info in known
    }


def _differing(info: CheckpointInfo, others: list[CheckpointInfo]) -> list[str]:
    """The first options that tell a checkpoint from all `others` (it is one): `mean`, `layer_weights=uniform`."""
    told, alike, shown = _flat(info.method_options | info.train), others, {}
    for name, value in told.items():
        values = [_flat(other.method_options | other.train).get(name) for other in alike]
        alike = [other for other, its in zip(alike, values, strict=True) if its == value]
        if len(alike) < len(values) and value is not None:
            shown[name] = value
    return [value if name in ("pooling", "pooler") else f"{name}={value}" for name, value in shown.items()]


def _flat(options: dict[str, Any]) -> dict[str, Any]:
    """Options inside options by dotted name: {"distillation": {"weight": 0.5}} -> {"distillation.weight": 0.5}."""
    flat = {}
    for name, value in options.items():
        inside = _flat(value) if isinstance(value, dict) else {}
        flat |= {f"{name}.{key}": item for key, item in inside.items()} or {name: value}
    return flat


def sort_key(record: RunRecord) -> tuple:
    """Tables and CSV list runs in this order, whatever the order they were written in."""
    checkpoint = record.checkpoint
    recipe = str(record.recipe["kind"])
    place = RECIPE_ORDER.index(recipe) if recipe in RECIPE_ORDER else len(RECIPE_ORDER)
    return (
        record.task,
        natural_key(shape_label(record.shape)),
        (checkpoint.method, checkpoint.backbone, checkpoint.name) if checkpoint else ("", "", ""),
        (place, natural_key(str(record.recipe))),
        record.engine,
        ROLE_ORDER.index(role(record)),
        natural_key(f"{policy_label(record)} {exits_label(record)}"),
        record.run_id,
    )


def natural_key(text: str) -> list[tuple[int, float, str]]:
    """Sorts `batch 8` before `batch 32`, and 0.05 before 0.1."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [(0, float(part), "") if i % 2 else (1, 0.0, part) for i, part in enumerate(parts)]


def slug(text: str) -> str:
    """A part of a file name."""
    return re.sub(r"[^a-zA-Z0-9.]+", "-", text).strip("-").lower()


def _dials(dials: dict[str, Any]) -> list[str]:
    named = [f"{name}={value}" for name, value in dials.items()]
    return [_list(value) for value in dials.values()] if len(named) == 1 else named


def _list(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
