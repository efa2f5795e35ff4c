"""The three ways of making one vector of a row's tokens, against numpy."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from models.network import MASKED, ExitsConfig, Pooling, pool
from tests import tiny

LENGTHS = [3, 5, 1]


def by_hand(hidden: np.ndarray, query: np.ndarray, pooling: Pooling) -> np.ndarray:
    """One row of [T, H], without padding -> [H]."""
    match pooling:
        case "first_token":
            return hidden[0]
        case "mean":
            return hidden.mean(axis=0)
        case "attention":
            weights = np.exp(hidden @ query)
            return weights @ hidden / weights.sum()


@pytest.mark.parametrize("pooling", ["first_token", "mean", "attention"])
def test_padding_weighs_nothing(pooling: Pooling):
    draw = np.random.default_rng(0)
    hidden, query = draw.normal(size=(3, 5, 8)), draw.normal(size=8)
    padding = np.arange(5) >= np.array(LENGTHS)[:, None]
    mask = torch.from_numpy(padding[:, None, None] * MASKED)
    given = torch.from_numpy(query) if pooling == "attention" else None
    found = pool(torch.from_numpy(hidden), mask, pooling, given).numpy()
    expected = [by_hand(row[:length], query, pooling) for row, length in zip(hidden, LENGTHS, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_attention_pooling_starts_from_the_mean(family: str):
    network = tiny.network(family, tiny.QUERIES)
    inputs = tiny.batch(tiny.encoded(8), range(8), family)
    learned = tiny.all_logits(network, inputs)
    for query in network.queries:
        torch.nn.init.zeros_(query)
    mean = tiny.network(family, ExitsConfig(pooling="mean", pooler="per_exit"))
    mean.load_state_dict({name: tensor for name, tensor in network.state_dict().items() if "queries" not in name})
    assert (tiny.all_logits(network, inputs) == tiny.all_logits(mean, inputs)).all()
    assert not np.allclose(learned, tiny.all_logits(mean, inputs), atol=0.1)


def test_attention_heads_have_no_queries():
    with pytest.raises(ValidationError, match="is for head pooler"):
        ExitsConfig(head="attention", pooling="attention")
