"""Texts to integer arrays: tokenizing a split once, then padding the batches that programs and training read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from models.config import UserError
from models.data import Rows

if TYPE_CHECKING:  # transformers takes seconds to import, and encode() only uses what it is handed
    from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"

Padding = Literal["longest", "max_length"]


@dataclass(frozen=True)
class Encoded:
    """N tokenized rows, unpadded, beside the `ids`, `labels` and `grade` of their `Rows`.

    `token_type_ids` has the shape of `input_ids` and is all zero where the tokenizer gives none (RoBERTa).
    """

    input_ids: list[list[int]]
    token_type_ids: list[list[int]]
    ids: list[str]
    labels: np.ndarray
    grade: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row: int64 [N]."""
        return np.array([len(row) for row in self.input_ids], dtype=np.int64)


def encode(rows: Rows, tokenizer: "PreTrainedTokenizerFast", max_seq_length: int) -> Encoded:
    """Tokenize `rows`, single texts or pairs, cutting the longer text first down to `max_seq_length` tokens.

    Raises:
        UserError: `max_seq_length` is longer than the tokenizer (and the backbone it belongs to) allows.
    """
    if max_seq_length > tokenizer.model_max_length:
        raise UserError(
            f"max_seq_length must be at most {tokenizer.model_max_length} for this tokenizer, found {max_seq_length}; "
            f"lower it"
        )
    first = [texts[0] for texts in rows.texts]
    second = [texts[1] for texts in rows.texts] if len(rows.texts[0]) == 2 else None
    batch = tokenizer(first, second, truncation=True, max_length=max_seq_length, return_attention_mask=False)
    input_ids: list[list[int]] = batch["input_ids"]
    token_type_ids: list[list[int]] = batch.get("token_type_ids") or [[0] * len(row) for row in input_ids]
    return Encoded(input_ids, token_type_ids, rows.ids, rows.labels, rows.grade)


def collate(
    encoded: Encoded,
    indices: Sequence[int] | np.ndarray,
    pad_token_id: int,
    padding: Padding,
    max_seq_length: int,
) -> dict[str, np.ndarray]:
    """Pad the rows at `indices` on the right, to the longest of them or to `max_seq_length`.

    Returns:
        `input_ids`, `attention_mask` (1 for a token, 0 for padding) and `token_type_ids`: int64 [B, T].

    Raises:
        UserError: a row that is longer than `max_seq_length`.
    """
    tokens = [encoded.input_ids[i] for i in indices]
    if (longest := max(map(len, tokens))) > max_seq_length:
        raise UserError(f"length: {max_seq_length} is too short for a row of {longest} tokens: give at least as many")
    width = max_seq_length if padding == "max_length" else longest
    shape = (len(tokens), width)
    batch = {
        "input_ids": np.full(shape, pad_token_id, dtype=np.int64),
        "attention_mask": np.zeros(shape, dtype=np.int64),
        "token_type_ids": np.zeros(shape, dtype=np.int64),
    }
    for row, index in enumerate(indices):
        length = len(tokens[row])
        batch["input_ids"][row, :length] = tokens[row]
        batch["attention_mask"][row, :length] = 1
        batch["token_type_ids"][row, :length] = encoded.token_type_ids[index]
    return batch


def word_tokenizer(words: Sequence[str], max_length: int) -> "PreTrainedTokenizerFast":
    """A word-level, lower-cased tokenizer over `words`, laid out as BERT's: `[CLS] a [SEP]`, `[CLS] a [SEP] b [SEP]`.

    Ids 0 to 4 are [PAD], [UNK], [CLS], [SEP] and [MASK]; the words follow in the given order. It saves and loads as
    any other tokenizer of `transformers`.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    special = [PAD, UNKNOWN, CLS, SEP, MASK]
    plain = list(dict.fromkeys(word.lower() for word in words))
    ids = {word: i for i, word in enumerate([*special, *plain])}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(CLS, ids[CLS]), (SEP, ids[SEP])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        pad_token=PAD,
        unk_token=UNKNOWN,
        cls_token=CLS,
        sep_token=SEP,
        mask_token=MASK,
    )
