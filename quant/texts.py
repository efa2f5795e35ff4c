"""Texts straight into a graph: a checkpoint's tokenizer in OpenVINO's own operations, beside the graph it feeds.

A server connects the two (`openvino_tokenizers.connect_models`) and passes strings.
"""

import copy
from typing import TYPE_CHECKING, cast

import numpy as np
import openvino as ov
from openvino import opset13 as ov_ops

from models.config import UserError, first_line
from models.data import Rows
from models.encoding import collate, encode
from quant.segments import INPUT_NAMES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Inputs, strings [B].
TEXT_NAMES = ("text", "text_pair")
# Texts on which both tokenizers must agree, and how many a call.
CHECKED, BATCH = 1024, 64


def text_model(tokenizer: "PreTrainedTokenizerFast", max_seq_length: int, pad_token_id: int, rows: Rows) -> ov.Model:
    """A graph from strings [B] to `INPUT_NAMES`, int64 [B, T]: cut and padded as `models.encoding` does.

    Args:
        tokenizer: the checkpoint's.
        max_seq_length: tokens a row is cut to.
        pad_token_id: what rows are padded with.
        rows: of the task; single texts or pairs, on some of which the graph is compared with the tokenizer.

    Raises:
        UserError: OpenVINO has no operations for this tokenizer, or they give other tokens.
    """
    from openvino_tokenizers import convert_tokenizer  # imported here: it loads its operations into OpenVINO

    options = {"max_length": max_seq_length, "truncation": True, "number_of_inputs": len(rows.texts[0])}
    try:
        converted = convert_tokenizer(copy.deepcopy(tokenizer), **options)
    except Exception as error:  # whatever a tokenizer may be made of that has no operation
        raise UserError(f"--text: OpenVINO cannot tokenize as this checkpoint does: {first_line(error)}") from error
    model = cast(ov.Model, converted)  # and no detokenizer, which was not asked for
    for port, name in zip(model.inputs, TEXT_NAMES, strict=False):
        port.set_names({name})
    named = {name for port in model.outputs for name in port.get_names()}
    if missing := set(INPUT_NAMES) - named:  # RoBERTa's has no token types: zeros
        ids = next(port for port in model.outputs if "input_ids" in port.get_names()).get_node().input_value(0)
        zeros = ov_ops.multiply(ids, ov_ops.constant(np.int64(0))).output(0)
        zeros.set_names(missing)
        model.add_results([ov_ops.result(zeros)])
    _without_state(model)
    _check(model, tokenizer, max_seq_length, pad_token_id, rows.take(range(min(CHECKED, len(rows)))))
    return model


def _without_state(model: ov.Model) -> None:
    """Make a constant of the switch between cutting and not: as a variable it would not outlast being connected."""
    for sink in model.get_sinks():
        model.remove_sink(sink)
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            node.output(0).replace(node.input_value(0))
    for variable in model.get_variables():
        model.remove_variable(variable)


def _check(
    model: ov.Model, tokenizer: "PreTrainedTokenizerFast", max_seq_length: int, pad_token_id: int, rows: Rows
) -> None:
    compiled, encoded = ov.Core().compile_model(model, "CPU"), encode(rows, tokenizer, max_seq_length)
    for first in range(0, len(rows), BATCH):
        chosen = range(first, min(first + BATCH, len(rows)))
        texts = zip(*(rows.texts[row] for row in chosen), strict=True)
        found = compiled({name: list(column) for name, column in zip(TEXT_NAMES, texts, strict=False)})
        expected = collate(encoded, chosen, pad_token_id, "longest", max_seq_length)
        if not all(np.array_equal(found[name], array) for name, array in expected.items()):
            raise UserError(f"--text: OpenVINO tokenizes rows {first} to {chosen[-1]} of fit into other tokens")
