"""Cutting train into `fit`, `select` and `tune` so that no text, nor a good part of one, stands on two sides."""

import hashlib
import unicodedata
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from models.config import UserError
from models.data import Rows, TaskData, hash_rows

SLICE_FRACTION = 0.10
SLICE_ROWS = 2000
# Two rows with so many words in a row in common were cut from one text. Shorter runs are turns of phrase: by 5 words
# 718 of STS-B's 5743 rows hang together, by 6 no more than 99 rows of SST-2, MRPC, RTE or STS-B.
RUN = 6
# A row of fewer words, down to so many, that stands inside a longer one is a phrase of it. Of dev, whose sentences are
# others, SST-2's train holds 0.15 such phrases a row, of a slice of train 0.45; of two words it is as many for both.
PHRASE = 3


def words_of(text: str) -> list[str]:
    """The words of a text, whatever the case, the spacing and the Unicode form."""
    return unicodedata.normalize("NFKC", text).casefold().split()


def normalise(texts: tuple[str, ...]) -> str:
    """What makes two rows the same row: their words."""
    return "\x1f".join(" ".join(words_of(text)) for text in texts)


def split_rows(
    train: Rows,
    held_out: dict[str, Rows],
    seed: int,
    overlap: Literal["drop", "refuse"],
    malformed_rows_dropped: int = 0,
) -> TaskData:
    """Slice `train` into `fit`, `select` and `tune` beside the `held_out` splits.

    Rows that were cut from one text go to one slice, such as a sentence and its phrases (SST-2) or the hypotheses of a
    premise (RTE, MNLI): what is chosen on `select` and `tune` must not have been trained on. Rows too short to be told
    by that leave `fit` where they stand inside a row of the others.

    `overlap` says what becomes of train rows whose text also stands in a held-out split: `drop` (published data) or
    `refuse` (a user's own files, where it is a leak to mend).

    Raises:
        UserError: an overlap under `refuse`, a split without rows, or fewer than three different train texts.
    """
    for split, rows in held_out.items():
        if not len(rows):
            raise UserError(f"every split needs rows: {split} has 0; add labelled rows to it")
    clean, dropped = _without(train, held_out, overlap)
    slices = _slices(clean, seed)
    fit = _without_phrases(slices["fit"], [slices["select"], slices["tune"]])
    splits = slices | {"fit": fit} | held_out
    counts = {split: len(rows) for split, rows in splits.items()}
    counts["phrases_dropped"] = len(slices["fit"]) - len(fit)
    counts["duplicates_grouped"] = len(clean) - len({normalise(texts) for texts in clean.texts})
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


def _slices(train: Rows, seed: int) -> dict[str, Rows]:
    """Deal whole groups, in the order of a seeded hash of their texts, to `select`, then `tune`, then `fit`.

    The order depends on the texts and the seed alone, never on how the file is sorted. Groups of rows too short to tell
    what they were cut from come last, to `fit` as long as there are others.
    """
    names = [normalise(texts) for texts in train.texts]
    if len(set(names)) < 3:
        raise UserError(
            f"train must hold at least 3 different texts to be split, found {len(set(names))}; add train rows"
        )
    quota = max(1, round(min(SLICE_FRACTION * len(train), SLICE_ROWS)))
    members: dict[str, list[int]] = {}
    for i, group in enumerate(_groups(train, names, quota)):
        members.setdefault(group, []).append(i)
    short = {group: all(_longest(train.texts[i]) < RUN for i in rows) for group, rows in members.items()}
    dealt: dict[str, list[int]] = {"fit": [], "select": [], "tune": []}
    for group in sorted(members, key=lambda name: (short[name], hashlib.sha256(f"{seed}\x1f{name}".encode()).digest())):
        split = next((name for name in ("select", "tune") if len(dealt[name]) < quota), "fit")
        dealt[split].extend(members[group])
    if empty := [split for split, indices in dealt.items() if not indices]:
        raise UserError(f"train cannot be split: rows of one text stay together, and none are left for {empty[0]}")
    return {split: train.take(sorted(indices)) for split, indices in dealt.items()}


def _without_phrases(fit: Rows, others: list[Rows]) -> Rows:
    """`fit` without phrases of the others' rows, unless that were all of it."""
    phrases = {
        tuple(words[i : i + length])
        for rows in others
        for texts in rows.texts
        for words in map(words_of, texts)
        if len(words) >= RUN
        for length in range(PHRASE, RUN)
        for i in range(len(words) - length + 1)
    }
    kept = [i for i, texts in enumerate(fit.texts) if not all(tuple(words_of(text)) in phrases for text in texts)]
    return fit.take(kept) if kept else fit


def _longest(texts: tuple[str, ...]) -> int:
    return max(len(words_of(text)) for text in texts)


def _groups(rows: Rows, names: list[str], most: int) -> list[str]:
    """The group of each row: the first name, in the order of the alphabet, among the rows that hang together.

    Rows hang together by a run of words, directly or through others. Where that comes to more than `most` rows, it is
    no text they share but a way of speaking, and the group of each is its own name.
    """
    from scipy.sparse import coo_array  # a tenth of a second, which who lists tasks need not wait for
    from scipy.sparse.csgraph import connected_components

    vocabulary: dict[str, int] = {}
    words, owners = [], []
    for row, texts in enumerate(rows.texts):
        for text in texts:
            found = [vocabulary.setdefault(word, len(vocabulary)) for word in words_of(text)]
            words += [*found, *[-1] * RUN]  # no run goes on into the next text
            owners += [row] * (len(found) + RUN)
    runs = sliding_window_view(np.array(words), RUN)
    whole = (runs >= 0).all(axis=1)
    # A run as one number: equal ones for different runs are as good as impossible.
    factors = np.random.default_rng(0).integers(2**63, size=RUN, dtype=np.uint64)
    _, run = np.unique((runs[whole].astype(np.uint64) * factors).sum(axis=1), return_inverse=True)
    edges = np.array(owners)[: len(runs)][whole], len(rows) + run
    nodes = len(rows) + len(run)
    graph = coo_array((np.ones(len(run), np.int8), edges), shape=(nodes, nodes))
    part = connected_components(graph, directed=False)[1][: len(rows)]
    size = np.bincount(part)
    first: dict[int, str] = {}
    for name, group in zip(names, part.tolist(), strict=True):
        first[group] = min(name, first.get(group, name))
    return [name if size[group] > most else first[group] for name, group in zip(names, part.tolist(), strict=True)]
