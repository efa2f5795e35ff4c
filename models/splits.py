"""Cutting train into `fit`, `select` and `tune` so that no text stands on two sides of a measurement."""

import hashlib
import unicodedata
from collections import defaultdict
from typing import Literal

from models.config import UserError
from models.data import Rows, TaskData, hash_rows

SLICE_FRACTION = 0.10
SLICE_ROWS = 2000


def normalise(texts: tuple[str, ...]) -> str:
    """What makes two rows the same row: their texts, whatever the case, the spacing and the Unicode form."""
    return "\x1f".join(" ".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in texts)


def split_rows(
    train: Rows,
    held_out: dict[str, Rows],
    seed: int,
    overlap: Literal["drop", "refuse"],
    malformed_rows_dropped: int = 0,
) -> TaskData:
    """Slice `train` into `fit`, `select` and `tune` beside the `held_out` splits.

    `overlap` says what becomes of train rows whose text also stands in a held-out split: `drop` (published data) or
    `refuse` (a user's own files, where it is a leak to mend).

    Raises:
        UserError: an overlap under `refuse`, a split without rows, or fewer than three different train texts.
    """
    for split, rows in held_out.items():
        if not len(rows):
            raise UserError(f"every split needs rows: {split} has 0; add labelled rows to it")
    clean, dropped = _without(train, held_out, overlap)
    groups = _groups(clean)
    splits = _slices(clean, groups, seed) | held_out
    counts = {split: len(rows) for split, rows in splits.items()}
    counts["duplicates_grouped"] = len(clean) - len(groups)
    counts["train_rows_dropped_in_dev"] = dropped
    counts["malformed_rows_dropped"] = malformed_rows_dropped
    return TaskData(splits=splits, data_hash=hash_rows(splits), counts=counts, seed=seed)


def _without(train: Rows, held_out: dict[str, Rows], overlap: Literal["drop", "refuse"]) -> tuple[Rows, int]:
    """Train without the rows that stand in a held-out split, and how many those were."""
    seen = {
        normalise(texts): row_id
        for rows in held_out.values()
        for row_id, texts in zip(rows.ids, rows.texts, strict=True)
    }
    twins = [seen.get(normalise(texts)) for texts in train.texts]
    leaked = [i for i, twin in enumerate(twins) if twin is not None]
    if leaked and overlap == "refuse":
        raise UserError(
            f"train and dev must not share texts: {len(leaked)} train rows also stand in dev, the first is "
            f"{train.ids[leaked[0]]} = {twins[leaked[0]]}; remove them from one of the two files"
        )
    return train.take(i for i, twin in enumerate(twins) if twin is None), len(leaked)


def _groups(rows: Rows) -> dict[str, list[int]]:
    """Row indices by normalised text."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for i, texts in enumerate(rows.texts):
        groups[normalise(texts)].append(i)
    return dict(groups)


def _slices(train: Rows, groups: dict[str, list[int]], seed: int) -> dict[str, Rows]:
    """Deal whole groups, in the order of a seeded hash of their text, to `select`, then `tune`, then `fit`.

    The order depends on the texts and the seed alone, never on how the file is sorted.
    """
    if len(groups) < 3:
        raise UserError(f"train must hold at least 3 different texts to be split, found {len(groups)}; add train rows")
    quota = max(1, round(min(SLICE_FRACTION * len(train), SLICE_ROWS)))
    dealt: dict[str, list[int]] = {"fit": [], "select": [], "tune": []}
    for text in sorted(groups, key=lambda text: hashlib.sha256(f"{seed}\x1f{text}".encode()).digest()):
        split = next((name for name in ("select", "tune") if len(dealt[name]) < quota), "fit")
        dealt[split].extend(groups[text])
    return {split: train.take(sorted(indices)) for split, indices in dealt.items()}
