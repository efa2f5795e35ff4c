"""Texts straight into a graph: OpenVINO's own tokenizer gives the tokens of the checkpoint's."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from models.checkpoints import load_checkpoint
from models.config import UserError
from models.data import Rows
from models.encoding import collate, encode, word_tokenizer
from models.policies import Entropy
from models.synthetic import vocabulary
from quant import artefact
from quant.artefact import ArtefactError, EarlyExitModel
from quant.export import export
from quant.recipes import Float32
from quant.segments import INPUT_NAMES
from quant.texts import TEXT_NAMES, text_model
from tests import tiny

LENGTH = 12
WORDS = word_tokenizer(vocabulary(), 64)
SINGLE: list[tuple[str, ...]] = [("the plot was dull .",), ("",), ("unheard of",), ("superb " * 40,)]
PAIRS: list[tuple[str, ...]] = [("the plot", "was dull ."), ("the plot " * 9, "dull"), ("dull", "the plot " * 9)]


def rows_of(texts: list[tuple[str, ...]]) -> Rows:
    return Rows([str(i) for i in range(len(texts))], texts, np.zeros(len(texts), np.int64))


def without_types() -> PreTrainedTokenizerFast:
    """As RoBERTa's, whose network ignores token types."""
    words = {"<pad>": 0, "<unk>": 1, "<s>": 2, "</s>": 3, "the": 4, "plot": 5, "dull": 6}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    names: Any = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=made, model_input_names=["input_ids", "attention_mask"], model_max_length=64, **names
    )


@pytest.mark.parametrize("texts", [SINGLE, PAIRS], ids=["single", "pairs"])
@pytest.mark.parametrize("tokenizer", [WORDS, without_types()], ids=["types", "no-types"])
def test_tokens_are_the_same(tokenizer: PreTrainedTokenizerFast, texts: list[tuple[str, ...]]):
    rows = rows_of(texts)
    model = text_model(tokenizer, LENGTH, 0, rows)
    named = zip(TEXT_NAMES, zip(*texts, strict=True), strict=False)
    answers = ov.Core().compile_model(model, "CPU")({name: list(column) for name, column in named})
    encoded = encode(rows, tokenizer, LENGTH)
    expected = collate(encoded, range(len(rows)), 0, "longest", LENGTH)
    assert max(encoded.lengths) == LENGTH  # one was cut
    for name in INPUT_NAMES:
        np.testing.assert_array_equal(answers[name], expected[name], err_msg=name)
    assert tokenizer.model_max_length == 64  # untouched


def test_other_tokens_are_refused(monkeypatch: pytest.MonkeyPatch):
    """Such as those of a tokenizer whose length OpenVINO does not cut to."""
    import openvino_tokenizers

    convert = openvino_tokenizers.convert_tokenizer
    monkeypatch.setattr(
        openvino_tokenizers, "convert_tokenizer", lambda given, **options: convert(given, **options | {"max_length": 9})
    )
    with pytest.raises(UserError, match="--text: OpenVINO tokenizes rows 0 to 3 of fit into other tokens"):
        text_model(WORDS, LENGTH, 0, rows_of(SINGLE))


def test_a_tokenizer_without_operations_is_refused():
    with pytest.raises(UserError, match="--text: OpenVINO cannot tokenize as this checkpoint does"):
        text_model(object(), LENGTH, 0, rows_of(SINGLE))  # pyright: ignore[reportArgumentType]


SERVER = """
import sys
import numpy as np
import openvino as ov
import openvino_tokenizers
core = ov.Core()
graphs = [core.read_model(name) for name in ("tokenizer.xml", "model.xml")]
model = core.compile_model(openvino_tokenizers.connect_models(*graphs), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
answer = model({"text": sys.argv[1:], "threshold": np.float32(0.5)})
assert "torch" not in sys.modules
print(answer["label"].tolist(), answer["exit_layer"].tolist())
del model  # before its core goes, or OpenVINO 2026.4 ends in a crash
"""


def test_strings_go_into_the_graph(tmp_path: Path):
    """In a process without PyTorch; and its files are among those that may not be altered."""
    tiny.checkpoint(tmp_path / "checkpoint")
    data = tiny.task().load(None, seed=0)
    given = load_checkpoint(tmp_path / "checkpoint"), tiny.task(), data, Float32(), Entropy(threshold=0.5), [1, 2, 3, 4]
    export(tmp_path / "served", *given, text=True)
    texts = [pair[0] for pair in data.splits["dev"].texts[:8]]
    found = EarlyExitModel.load(tmp_path / "served").predict(texts)
    command = [sys.executable, "-c", SERVER, *texts]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path / "served", timeout=120, check=True)
    names = tiny.task().label_names
    assert done.stdout.strip() == f"{[names.index(x) for x in found.labels or []]} {found.exit_layer.tolist()}"
    (tmp_path / "served" / artefact.TEXT_WEIGHTS).write_bytes(b"other words")
    with pytest.raises(ArtefactError, match=r"tokenizer\.bin"):
        EarlyExitModel.load(tmp_path / "served")
