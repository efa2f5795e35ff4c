"""Recording passes on disk: the logits of every exit, from which policies are replayed, here and in reports."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.disk import naming
from benchmarks.records import RunRecord
from models.config import UserError, first_line


class Recording(NamedTuple):
    """One recording pass: its exits (layers, ascending, perhaps not all), and split -> [exits, N, C] logits."""

    exits: list[int]
    logits: dict[str, np.ndarray]

    def of(self, split: str, exits: Sequence[int]) -> np.ndarray:
        """[len(exits), N, C] logits of some of its exits."""
        return self.logits[split][[self.exits.index(layer) for layer in exits]]


def recording_path(folder: Path, recording: str) -> Path:
    """Where a recording pass's logits are: `<split>` [exits, N, C] float32 for each split, and `exits`."""
    return folder / "recordings" / recording / "exits.npz"


def save_recording(path: Path, recording: Recording) -> None:
    """Write a recording, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    unfinished = path.with_suffix(".tmp.npz")
    arrays: Any = recording.logits | {"exits": np.array(recording.exits)}
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(unfinished, **arrays)
        unfinished.replace(path)


def read_recording(path: Path) -> Recording:
    """Read what `save_recording` wrote.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with np.load(path) as file:
            arrays = dict(file)
        return Recording(arrays.pop("exits").tolist(), arrays)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{str(path)!r} cannot be read ({first_line(error)}); delete it, and run the suite again"
        ) from error


def read_recordings(folder: Path, records: list[RunRecord]) -> dict[str, Recording]:
    """Name -> recording, of those that records name and that are there.

    Raises:
        UserError: a file is damaged.
    """
    names = {record.recording for record in records if record.recording is not None}
    paths = {name: recording_path(folder, name) for name in names}
    return {name: read_recording(path) for name, path in paths.items() if path.is_file()}
