"""Encoding: tokens, truncation, padding, and a word tokenizer that survives being saved."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AlbertConfig,
    AutoTokenizer,
    BertConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from models.config import UserError
from models.data import Rows
from models.encoding import Encoded, collate, encode, word_tokenizer
from models.synthetic import vocabulary

WORDS = ["the", "plot", "was", "dull", ",", "but"]  # ids 5 to 10
TOKENIZER = word_tokenizer(WORDS, max_length=16)


def rows(*texts: tuple[str, ...]) -> Rows:
    return Rows([f"dev-{i}" for i in range(len(texts))], list(texts), np.arange(len(texts)))


def test_single_texts_are_laid_out_as_berts() -> None:
    encoded = encode(rows(("The PLOT was dull,",), ("but xylophone",)), TOKENIZER, 16)
    assert encoded.input_ids == [[2, 5, 6, 7, 8, 9, 3], [2, 10, 1, 3]]
    assert encoded.token_type_ids == [[0] * 7, [0] * 4]
    assert encoded.lengths.tolist() == [7, 4]
    assert (encoded.ids, encoded.grade) == (["dev-0", "dev-1"], None)


def test_pairs_have_token_types_and_lose_the_longer_text_first() -> None:
    pair = rows(("the plot was dull", "but dull"))
    assert encode(pair, TOKENIZER, 16).input_ids == [[2, 5, 6, 7, 8, 3, 10, 8, 3]]
    assert encode(pair, TOKENIZER, 16).token_type_ids == [[0, 0, 0, 0, 0, 0, 1, 1, 1]]
    assert encode(pair, TOKENIZER, 7).input_ids == [[2, 5, 6, 3, 10, 8, 3]]


def test_a_tokenizer_without_token_types_gives_zeros() -> None:
    tokenizer = word_tokenizer(WORDS, max_length=16)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    assert encode(rows(("plot", "dull")), tokenizer, 16).token_type_ids == [[0] * 5]


def test_more_tokens_than_the_tokenizer_allows_are_refused() -> None:
    with pytest.raises(UserError, match=r"max_seq_length must be at most 16.*found 17"):
        encode(rows(("plot",)), TOKENIZER, 17)


def test_collate_refuses_what_does_not_fit() -> None:
    encoded = encode(rows(("the plot was dull",)), TOKENIZER, 16)
    with pytest.raises(UserError, match="length: 5 is too short for a row of 6 tokens: give at least as many"):
        collate(encoded, [0], pad_token_id=0, padding="longest", max_seq_length=5)


def test_collate_pads_to_the_longest_or_to_the_maximum() -> None:
    encoded = encode(rows(("the plot was",), ("plot",), ("dull",)), TOKENIZER, 16)
    batch = collate(encoded, [2, 0], pad_token_id=0, padding="longest", max_seq_length=16)
    assert batch["input_ids"].tolist() == [[2, 8, 3, 0, 0], [2, 5, 6, 7, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int64)}
    wide = collate(encoded, np.array([1]), pad_token_id=4, padding="max_length", max_seq_length=6)
    assert wide["input_ids"].tolist() == [[2, 6, 3, 4, 4, 4]]
    assert wide["token_type_ids"].shape == (1, 6)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=12), min_size=1, max_size=8),
    st.sampled_from(["longest", "max_length"]),
)
def test_the_attention_mask_marks_exactly_the_tokens(tokens: list[list[int]], padding: str) -> None:
    types = [[i % 2 for i, _ in enumerate(row)] for row in tokens]
    encoded = Encoded(tokens, types, [str(i) for i in range(len(tokens))], np.zeros(len(tokens)))
    batch = collate(encoded, range(len(tokens)), 0, padding, 12)  # pyright: ignore[reportArgumentType]
    for i, row in enumerate(tokens):
        mask = batch["attention_mask"][i] == 1
        assert batch["input_ids"][i][mask].tolist() == row
        assert batch["token_type_ids"][i][mask].tolist() == types[i]
        assert not batch["input_ids"][i][~mask].any()


@pytest.mark.parametrize("config", [None, BertConfig, RobertaConfig, AlbertConfig])
def test_the_word_tokenizer_survives_saving_beside_any_backbone(
    config: type[PretrainedConfig] | None, tmp_path: Path
) -> None:
    tokenizer = word_tokenizer(vocabulary(), max_length=64)
    tokenizer.save_pretrained(tmp_path)
    if config is not None:
        config().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    pair = rows(("the plot was hardly dull .", "critics said no"))
    assert encode(pair, loaded, 64).input_ids == encode(pair, tokenizer, 64).input_ids
    assert (loaded.model_max_length, len(loaded)) == (64, len(vocabulary()) + 5)
    assert (loaded.pad_token_id, loaded.unk_token_id, loaded.mask_token) == (0, 1, "[MASK]")


def test_every_generated_word_has_an_id_of_its_own() -> None:
    tokenizer = word_tokenizer(vocabulary(), max_length=64)
    ids = encode(rows(*((word,) for word in vocabulary())), tokenizer, 64).input_ids
    assert ids == [[2, 5 + i, 3] for i in range(len(vocabulary()))]
