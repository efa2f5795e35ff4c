"""Recording passes as read for reports: the logits of every exit, from which policies are replayed."""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.records import RunRecord, recording_path
from models.config import UserError, first_line


class Recording(NamedTuple):
    """One recording pass: its exits (layers, ascending, perhaps not all), and split -> [exits, N, C] logits."""

    exits: list[int]
    logits: dict[str, np.ndarray]

    def of(self, split: str, exits: list[int]) -> np.ndarray:
        """[len(exits), N, C] logits of some of its exits."""
        return self.logits[split][[self.exits.index(layer) for layer in exits]]


def read_recordings(folder: Path, records: list[RunRecord]) -> dict[str, Recording]:
    """Name -> recording, of those that records name and that are there.

    Raises:
        UserError: a file is damaged.
    """
    names = {record.recording for record in records if record.recording is not None}
    paths = {name: recording_path(folder, name) for name in names}
    return {name: _read(path) for name, path in paths.items() if path.is_file()}


def _read(path: Path) -> Recording:
    try:
        with np.load(path) as file:
            arrays = dict(file)
        return Recording(arrays.pop("exits").tolist(), arrays)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{str(path)!r} cannot be read ({first_line(error)}); run the suite again") from error
