"""The eight GLUE tasks, from the original TSV folders or by name through `datasets`.

Source: Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding", 2019.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from models.config import UserError
from models.data import BaseTask, MetricName, Rows, TaskData
from models.splits import split_rows
from models.tables import Table, class_ids, read_table, rows_of, targets

HUB_DATASET = "nyu-mll/glue"
STSB_RANGE = (0.0, 5.0)


@dataclass(frozen=True)
class GlueLayout:
    """Where a task keeps its texts and labels.

    `values` are the label cells of the TSV files in the order of the class ids (none: regression) and `names` what
    they mean; `hub_text` names the text columns of the hub's copy where they differ.
    """

    folder: str
    text: tuple[str, ...]
    label: str
    values: tuple[str, ...]
    names: tuple[str, ...]
    metrics: tuple[MetricName, ...]
    hub_text: tuple[str, ...]
    header: tuple[str, ...] | None = None
    dev_files: tuple[tuple[str, str], ...] = (("dev", "dev"),)
    malformed_allowed: int = 0


PAIR = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")
LAYOUTS: dict[str, GlueLayout] = {
    "cola": GlueLayout(
        folder="CoLA",
        text=("sentence",),
        label="label",
        values=("0", "1"),
        names=("unacceptable", "acceptable"),
        metrics=("matthews",),
        hub_text=("sentence",),
        header=("source", "label", "original mark", "sentence"),
    ),
    "sst2": GlueLayout(
        folder="SST-2",
        text=("sentence",),
        label="label",
        values=("0", "1"),
        names=("negative", "positive"),
        metrics=("accuracy",),
        hub_text=("sentence",),
    ),
    "mrpc": GlueLayout(
        folder="MRPC",
        text=("#1 String", "#2 String"),
        label="Quality",
        values=("0", "1"),
        names=("not_equivalent", "equivalent"),
        metrics=("accuracy", "f1"),
        hub_text=PAIR,
    ),
    "qqp": GlueLayout(
        folder="QQP",
        text=("question1", "question2"),
        label="is_duplicate",
        values=("0", "1"),
        names=("not_duplicate", "duplicate"),
        metrics=("f1", "accuracy"),
        hub_text=("question1", "question2"),
        # The published files break a few questions at a line end; every reader of GLUE leaves those lines out.
        malformed_allowed=64,
    ),
    "stsb": GlueLayout(
        folder="STS-B",
        text=PAIR,
        label="score",
        values=(),
        names=(),
        metrics=("pearson", "spearman"),
        hub_text=PAIR,
    ),
    "mnli": GlueLayout(
        folder="MNLI",
        text=PAIR,
        label="gold_label",
        values=("contradiction", "entailment", "neutral"),
        names=("contradiction", "entailment", "neutral"),
        metrics=("accuracy",),
        hub_text=("premise", "hypothesis"),
        dev_files=(("dev", "dev_matched"), ("dev_mismatched", "dev_mismatched")),
    ),
    "qnli": GlueLayout(
        folder="QNLI",
        text=("question", "sentence"),
        label="label",
        values=ENTAILMENT,
        names=ENTAILMENT,
        metrics=("accuracy",),
        hub_text=("question", "sentence"),
    ),
    "rte": GlueLayout(
        folder="RTE",
        text=PAIR,
        label="label",
        values=ENTAILMENT,
        names=ENTAILMENT,
        metrics=("accuracy",),
        hub_text=PAIR,
    ),
}


class GlueTask(BaseTask):
    """One GLUE task.

    Headlines: Matthews correlation for CoLA, F1 for QQP (most of whose rows are no duplicates), Pearson for STS-B, and
    accuracy for the others, for MRPC, too, where who calls every pair equivalent has an F1 of 0.81. MNLI's matched rows
    are `dev`, the mismatched ones `dev_mismatched`. MNLI class ids follow the TSV readers (contradiction, entailment,
    neutral), which is not the hub's order.
    """

    kind: Literal["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte"]

    @property
    def name(self) -> str:
        """The task's name in tables and file names."""
        return self.kind

    @property
    def label_names(self) -> list[str]:
        """The classes by id; empty for STS-B."""
        return list(LAYOUTS[self.kind].names)

    @property
    def metric_names(self) -> Sequence[MetricName]:
        """GLUE's metrics for the task, the headline first."""
        return LAYOUTS[self.kind].metrics

    def load(self, location: Path | None, seed: int) -> TaskData:
        """Read `location` (the GLUE root or the task's own folder), or the hub's copy without one, and slice train.

        Train rows whose text also stands in dev are dropped and counted.

        Raises:
            UserError: a missing folder, file or column, a malformed row, or a hub out of reach.
        """
        layout = LAYOUTS[self.kind]
        if location is None:
            return _load_hub(self.kind, layout, seed)
        return _load_folder(_task_folder(location, layout), layout, seed)


def _task_folder(location: Path, layout: GlueLayout) -> Path:
    """The task's folder: under the GLUE root, or `location` itself."""
    for folder in (location / layout.folder, location):
        if (folder / "train.tsv").is_file():
            return folder
    raise UserError(
        f"no train.tsv in {location / layout.folder} or {location}; give the GLUE folder (with {layout.folder} in it) "
        f"or the {layout.folder} folder itself"
    )


def _load_folder(folder: Path, layout: GlueLayout, seed: int) -> TaskData:
    files = {"train": "train", **dict(layout.dev_files)}
    columns = [*layout.text, layout.label]
    tables = {
        split: read_table(folder / f"{stem}.tsv", columns, layout.header, layout.malformed_allowed)
        for split, stem in files.items()
    }
    rows = {split: _folder_rows(table, split, layout) for split, table in tables.items()}
    malformed_rows = sum(table.malformed_rows for table in tables.values())
    return split_rows(rows.pop("train"), rows, seed, overlap="drop", malformed_rows_dropped=malformed_rows)


def _folder_rows(table: Table, split: str, layout: GlueLayout) -> Rows:
    if layout.values:
        labels = class_ids(table, layout.label, layout.values)
    else:
        labels = targets(table, layout.label, *STSB_RANGE)
    return rows_of(table, split, layout.text, labels)


def _load_hub(kind: str, layout: GlueLayout, seed: int) -> TaskData:
    """The hub's copy; its splits are called train, validation, validation_matched and validation_mismatched."""
    parts = _fetch_hub(kind)
    rows = {"train": _hub_rows(parts["train"], "train", layout)}
    for split, stem in layout.dev_files:
        rows[split] = _hub_rows(parts[stem.replace("dev", "validation")], split, layout)
    return split_rows(rows.pop("train"), rows, seed, overlap="drop")


def _fetch_hub(kind: str) -> Any:
    try:
        from datasets import load_dataset

        return load_dataset(HUB_DATASET, kind)
    except ImportError as error:
        fix = "install the `datasets` package, or name a GLUE folder with --dataset_location"
        raise UserError(f"reading {kind} without a folder needs the `datasets` package: {fix}") from error
    except Exception as error:  # the client raises anything from OSError to its HTTP library's own errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{kind} could not be read from the hub dataset {HUB_DATASET} ({reason}); name a GLUE folder with "
            f"--dataset_location"
        ) from error


def _hub_rows(part: Any, split: str, layout: GlueLayout) -> Rows:
    """Rows of one hub split; its class ids are translated by name, since MNLI's order differs from the TSV readers'."""
    columns = [[text.strip() for text in part[name]] for name in layout.hub_text]
    texts = list(zip(*columns, strict=True))
    if layout.names:
        hub_names = part.features["label"].names
        labels = np.array([layout.names.index(hub_names[label]) for label in part["label"]], dtype=np.int64)
    else:
        labels = np.array(part["label"], dtype=np.float32)
    return Rows([f"{split}-{i}" for i in range(len(texts))], texts, labels)
