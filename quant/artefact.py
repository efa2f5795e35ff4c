"""An exported early-exit model: one graph with its exits inside, served without PyTorch or ExitBench.

This file stands alone, and a copy of it lies in every exported folder:

    model.xml, model.bin   OpenVINO's graph: token ids and dials in; scores, label and exit layer out; any batch size
    model.onnx             or ONNX Runtime's, with the same inputs and outputs
    tokenizer.json         how texts become token ids
    tokenizer.xml, .bin    on request, the same as OpenVINO operations
    artefact.json          what the model is, its dials, and the hash of every file
    artefact.py            this file

It needs numpy, tokenizers, and openvino or onnxruntime:

    from artefact import EarlyExitModel
    model = EarlyExitModel.load("folder")
    model.predict(["a film to remember"]).labels
"""

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

SCHEMA = "exitbench/artefact/2"
# Written on request: the tokenizer as a graph of its own, for `openvino_tokenizers`.
TEXT_GRAPH, TEXT_WEIGHTS = "tokenizer.xml", "tokenizer.bin"
GRAPH, WEIGHTS, ONNX_GRAPH = "model.xml", "model.bin", "model.onnx"
DESCRIPTION, TOKENIZER, LOADER = "artefact.json", "tokenizer.json", "artefact.py"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# A compiled graph: input arrays by name -> output arrays by name; any number of threads may call it at once.
Graph = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


class ArtefactError(Exception):
    """A folder that is not a whole, unaltered artefact, or inputs it cannot take; one line that names the fix."""


class Prediction(NamedTuple):
    """Answers for N texts, in their order.

    Attributes:
        labels: N class names; None for a regression.
        scores: [N, C] float32 class probabilities; [N, 1] values for a regression.
        exit_layer: [N] int64, the layer each text left at, from 1.
    """

    labels: list[str] | None
    scores: np.ndarray
    exit_layer: np.ndarray


class EarlyExitModel:
    """A loaded artefact. Any number of threads may call it at once."""

    def __init__(self, graph: Graph, tokenizer: Tokenizer, description: dict[str, Any]):
        self.graph, self.tokenizer, self.description = graph, tokenizer, description

    @classmethod
    def load(cls, folder: str | Path, threads: int | None = None) -> "EarlyExitModel":
        """Read, check and compile an exported folder.

        Args:
            folder: what `python -m quant export` wrote.
            threads: of the CPU; None leaves the choice to the engine.

        Raises:
            ArtefactError: a file is missing, altered, or of another version.
        """
        folder = Path(folder)
        description = check(folder)
        graph = ENGINES[description["engine"]](folder, description["options"], threads)
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        tokenizer.no_padding()
        tokenizer.enable_truncation(description["max_seq_length"])
        return cls(graph, tokenizer, description)

    def predict(
        self, texts: Sequence[str] | Sequence[tuple[str, str]], batch_size: int = 32, **dials: float
    ) -> Prediction:
        """Answer for texts, or for pairs of texts.

        Args:
            texts: one or more strings, or pairs of strings.
            batch_size: texts a call; one where the model takes rows only alone.
            dials: thresholds other than those exported, such as `threshold=0.3`; nothing is recompiled.

        Raises:
            ArtefactError: no texts, or a dial that this policy does not have.
        """
        if isinstance(texts, str) or not len(texts):
            raise ArtefactError(f"texts must be one or more strings in a list, found {texts!r}")
        batch_size = 1 if self.description["rows_alone"] else batch_size
        cuts = [texts[first : first + batch_size] for first in range(0, len(texts), batch_size)]
        parts = [self.run(*self.inputs(cut), **dials) for cut in cuts]
        names = self.description["labels"]
        scores, exit_layer = (np.concatenate([part[name] for part in parts]) for name in ("scores", "exit_layer"))
        if names is None:
            return Prediction(None, scores, exit_layer)
        return Prediction([names[i] for part in parts for i in part["label"]], scores, exit_layer)

    def inputs(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What `run` takes for B texts: int64 [B, T] each, padded on the right to the longest of them."""
        rows = self.tokenizer.encode_batch(list(texts))
        shape = len(rows), max(len(row.ids) for row in rows)
        input_ids = np.full(shape, self.description["pad_token_id"], np.int64)
        mask, type_ids = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for i, row in enumerate(rows):
            length = len(row.ids)
            input_ids[i, :length], mask[i, :length], type_ids[i, :length] = row.ids, 1, row.type_ids
        return input_ids, mask, type_ids

    def run(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray, **dials: float
    ) -> dict[str, np.ndarray]:
        """One call of the graph on padded int64 arrays [B, T]: its outputs by name, each with B rows.

        Raises:
            ArtefactError: a dial that this policy does not have, or a batch for a model that takes rows only alone.
        """
        if self.description["rows_alone"] and len(input_ids) > 1:
            raise ArtefactError(f"this model's scales are those of a whole batch: run rows alone, not {len(input_ids)}")
        known = self.description["dials"]
        if unknown := set(dials) - set(known):
            raise ArtefactError(
                f"unknown dial {min(unknown)!r}; policy {self.description['policy']} has {sorted(known)}"
            )
        inputs = dict(zip(INPUTS, (input_ids, attention_mask, token_type_ids), strict=True))
        return self.graph(inputs | {name: np.asarray(value, np.float32) for name, value in (known | dials).items()})


def _openvino(folder: Path, options: dict[str, Any], threads: int | None) -> Graph:
    """OpenVINO's graph; each thread has an inference request of its own."""
    import openvino as ov

    threading_options = {} if threads is None else {"INFERENCE_NUM_THREADS": threads}
    options = {"PERFORMANCE_HINT": "LATENCY", **options, **threading_options}
    compiled, requests = ov.Core().compile_model(str(folder / GRAPH), "CPU", options), threading.local()

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if not hasattr(requests, "own"):
            requests.own = compiled.create_infer_request()
        outputs = requests.own.infer(inputs, share_inputs=True)
        return {next(iter(port.get_names())): array for port, array in outputs.items()}

    return run


def _onnxruntime(folder: Path, options: dict[str, Any], threads: int | None) -> Graph:
    """ONNX Runtime's graph."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    if threads is not None:
        settings.intra_op_num_threads = threads
    session = ort.InferenceSession(folder / ONNX_GRAPH, settings, ["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found: Any = session.run(names, inputs)
        return dict(zip(names, found, strict=True))

    return run


ENGINES: dict[str, Callable[[Path, dict[str, Any], int | None], Graph]] = {
    "openvino": _openvino,
    "onnxruntime": _onnxruntime,
}


def check(folder: Path) -> dict[str, Any]:
    """The description of a folder whose every file is there and unaltered.

    Raises:
        ArtefactError: it is not.
    """
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        hashes = description["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtefactError(
            f"{str(folder)!r} is not an exported model: {DESCRIPTION} cannot be read; export it again"
        ) from error
    if description.get("schema") != SCHEMA:
        raise ArtefactError(
            f"{str(folder)!r} has schema {description.get('schema')!r}, this loader reads {SCHEMA!r}: export it again, "
            f"or use the {LOADER} inside it"
        )
    for name, expected in hashes.items():
        if not (folder / name).is_file():
            raise ArtefactError(f"{str(folder / name)!r} is missing: export the model again")
        if file_hash(folder / name) != expected:
            raise ArtefactError(f"{str(folder / name)!r} is not the file that was exported: export the model again")
    return description


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
