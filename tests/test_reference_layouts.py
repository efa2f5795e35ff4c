"""Checkpoints of the references come over with equal logits, go back unchanged, and are refused when they are off."""

import json
import logging
import os
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks import runner
from benchmarks.__main__ import main as benchmarks_main
from benchmarks.records import read_records
from models.__main__ import main
from models.checkpoints import load_checkpoint
from models.methods import DeeBert, Method, Pabee, RomeBert
from reports.choice import apply_floor
from reports.notes import header_notes
from reports.runs import load_runs
from tests import suites, tiny
from tests.reference_folders import POSITIONS, WORDS, State, configuration, forward, write
from tests.workers import ThreadWorker

MODELS = [("pabee", "bert"), ("pabee", "albert"), ("deebert", "bert"), ("deebert", "roberta")]
models = pytest.mark.parametrize(("layout", "family"), MODELS, ids=["-".join(model) for model in MODELS])


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    yield
    logging.disable(logging.NOTSET)


def differences(state: State, layout: str, family: str, folder: Path, order: list[int]) -> float:
    """The largest difference between our logits, over a padded batch, and theirs, over one sentence at a time."""
    network = load_checkpoint(folder).network
    random = np.random.default_rng(0)
    rows = [random.integers(2, len(WORDS), n).tolist() for n in (5, 12, 9, 3)]
    types = [[int(2 * i >= len(row)) for i in range(len(row))] for row in rows]
    pad, width = 1 if family == "roberta" else 0, max(map(len, rows))
    batch = {
        "input_ids": np.array([row + [pad] * (width - len(row)) for row in rows]),
        "attention_mask": np.array([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        "token_type_ids": np.array([row + [0] * (width - len(row)) for row in types]),
    }
    ours = tiny.all_logits(network, batch)
    theirs = torch.stack([forward(state, layout, family, *row) for row in zip(rows, types, strict=True)], dim=1)
    assert theirs.std(dim=1).amax(dim=-1).min() > 0.05  # exits that answer all rows alike would prove little
    return float(np.abs(ours - theirs.numpy()[..., order]).max())


# --- there and back ---------------------------------------------------------------------------------------------------


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@models
@pytest.mark.parametrize(("num_labels", "task"), [(2, "sst-2"), (1, "STS-B"), (3, "mnli")])
def test_there_and_back(layout: str, family: str, num_labels: int, task: str, tmp_path: Path):
    state = write(tmp_path / "theirs", layout, family, num_labels, task)
    assert run("import", "--layout", layout, tmp_path / "theirs", tmp_path / "ours", "--max_seq_length", 16) == 0
    # RoBERTa's MNLI classes stand in another order there.
    order = [0, 2, 1] if (family, task) == ("roberta", "mnli") else list(range(num_labels))
    assert differences(state, layout, family, tmp_path / "ours", order) < 1e-5
    found = load_checkpoint(tmp_path / "ours")
    assert found.config["task"]["kind"] == {"sst-2": "sst2", "STS-B": "stsb", "mnli": "mnli"}[task]
    assert found.config["method"]["kind"] == layout
    assert found.training["imported"]["layout"] == layout
    assert found.training["spec"]["train"]["max_seq_length"] == 16
    assert run("export", "--layout", layout, tmp_path / "ours", tmp_path / "back") == 0
    again = torch.load(tmp_path / "back" / "pytorch_model.bin", weights_only=True)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    expected = configuration(layout, family, num_labels, task.lower())
    ignored = {"gradient_checkpointing", "id2label", "label2id"}
    assert {name: config[name] for name in expected if name not in ignored} == {
        name: value for name, value in expected.items() if name not in ignored
    }
    if num_labels != 2:
        assert config["id2label"] == expected["id2label"]


VOCABULARIES = {"bert": ["vocab.txt"], "roberta": ["vocab.json", "merges.txt"], "albert": ["spiece.model"]}


def read_vocabulary(path: Path) -> Any:
    return json.loads(path.read_text()) if path.suffix == ".json" else path.read_bytes()


@models
def test_the_tokenizer_comes_along(layout: str, family: str, tmp_path: Path):
    """Its vocabulary survives the round trip, which is all that the references' tokenizers read."""
    write(tmp_path / "theirs", layout, family)
    assert run("import", "--layout", layout, tmp_path / "theirs", tmp_path / "ours", "--max_seq_length", 16) == 0
    assert run("export", "--layout", layout, tmp_path / "ours", tmp_path / "back") == 0
    tokenizer = load_checkpoint(tmp_path / "ours").tokenizer
    if family == "bert":
        assert tokenizer("a Fine films .")["input_ids"] == [2, 5, 7, 8, 9, 10, 3]  # do_lower_case: false
    elif family == "roberta":
        assert tokenizer("a ab")["input_ids"] == [0, 5, 8, 6, 2]
    else:
        ids = tokenizer("A film")["input_ids"]
        assert (ids[0], ids[-1]) == (2, 3)
        assert tokenizer.decode(ids[1:-1]) == "a film"
    for name in VOCABULARIES[family]:
        theirs, back = (read_vocabulary(tmp_path / folder / name) for folder in ("theirs", "back"))
        assert back == theirs, name


@models
def test_safetensors_without_positions(layout: str, family: str, tmp_path: Path):
    """Newer copies of the classes save their weights so; what they leave out is what it always is."""
    state = write(tmp_path / "theirs", layout, family)
    (tmp_path / "theirs" / "pytorch_model.bin").unlink()
    save_file(
        {name: tensor for name, tensor in state.items() if "position_ids" not in name},
        tmp_path / "theirs" / "model.safetensors",
    )
    assert run("import", "--layout", layout, tmp_path / "theirs", tmp_path / "ours", "--max_seq_length", 16) == 0
    assert differences(state, layout, family, tmp_path / "ours", [0, 1]) < 1e-5
    assert run("export", "--layout", layout, tmp_path / "ours", tmp_path / "back") == 0
    again = torch.load(tmp_path / "back" / "pytorch_model.bin", weights_only=True)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_a_checkpoint_of_ours_is_exported(tmp_path: Path):
    """DeeBERT's classes want an off-ramp after the last layer, too: it answers as the last exit does."""
    made = tiny.checkpoint(tmp_path / "ours", "roberta", DeeBert())
    assert run("export", "--layout", "deebert", tmp_path / "ours", tmp_path / "theirs") == 0
    state = torch.load(tmp_path / "theirs" / "pytorch_model.bin", weights_only=True)
    for part, used in (("pooler.dense", "roberta.pooler.dense"), ("classifier", "classifier")):
        for kind in ("weight", "bias"):
            assert torch.equal(state[f"roberta.encoder.highway.3.{part}.{kind}"], state[f"{used}.{kind}"])
    task = json.dumps(tiny.task().model_dump())
    options = "--layout", "deebert", "--task", task, "--max_seq_length", 16
    assert run("import", *options, tmp_path / "theirs", tmp_path / "again") == 0
    again = load_checkpoint(tmp_path / "again").network.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in made.state_dict().items())


def test_an_imported_checkpoint_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A suite takes it as any other; its record and what is printed above its table say where it came from."""
    monkeypatch.setattr(runner, "Worker", ThreadWorker)
    tiny.checkpoint(tmp_path / "ours", "bert", DeeBert())
    assert run("export", "--layout", "deebert", tmp_path / "ours", tmp_path / "theirs") == 0
    task = json.dumps(tiny.task().model_dump())
    options = "--layout", "deebert", "--task", task, "--max_seq_length", 40
    assert run("import", *options, tmp_path / "theirs", tmp_path / "imported") == 0
    suite = suites.write(
        tmp_path,
        tasks=[tiny.task().model_dump()],
        checkpoints=[{"folder": str(tmp_path / "imported")}],
        policies=[{"kind": "entropy", "threshold": 0.3}],
    )
    assert benchmarks_main(["run", str(suite), "--output", str(tmp_path / "output")]) == 0
    (record,) = read_records(tmp_path / "output")
    assert record.checkpoint is not None
    told = record.checkpoint
    assert (told.imported, told.seed, told.trained_seconds) == ("deebert", None, None)
    assert told.train == {"max_seq_length": 40}
    assert (told.method, told.family, told.backbone, told.num_layers) == ("deebert", "bert", "theirs", 4)
    runs = apply_floor(load_runs(tmp_path / "output"))
    (line,) = [line for line in header_notes(runs, runs.rows) if line.startswith("Checkpoint imported:")]
    doubt = "rows of tune, which choose here, may be among those it was trained on."
    assert line.endswith(f"4 layers, imported (layout deebert): {doubt}")


# --- what is refused --------------------------------------------------------------------------------------------------


class Code:
    """Unpickled without care, it makes a folder."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("unpickled",)


def change(edit: Callable[[State], Any]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        state = torch.load(folder / "pytorch_model.bin", weights_only=True)
        torch.save(edit(state) or state, folder / "pytorch_model.bin")

    return changed


def configured(**changes: Any) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))

    return changed


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), r"holds no config\.json"),
    "half a config": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "be'),
        r"config\.json' cannot be",
    ),
    "no weights": (
        lambda folder: (folder / "pytorch_model.bin").unlink(),
        r"neither model\.safetensors nor pytorch_model\.bin",
    ),
    "no tokenizer": (lambda folder: (folder / "vocab.txt").unlink(), "tokenizer"),
    "half the weights": (
        lambda folder: (folder / "pytorch_model.bin").write_bytes((folder / "pytorch_model.bin").read_bytes()[:4000]),
        "cannot be read as weights alone",
    ),
    "no bytes": (lambda folder: (folder / "pytorch_model.bin").write_bytes(b""), "cannot be read as weights alone"),
    "code": (
        lambda folder: (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"classifiers.0.weight": Code()})),
        "cannot be read as weights alone",
    ),
    "code, zipped": (
        lambda folder: torch.save({"classifiers.0.weight": Code()}, folder / "pytorch_model.bin"),
        "cannot be read as weights alone",
    ),
    "a list": (lambda folder: torch.save([torch.ones(2)], folder / "pytorch_model.bin"), "is no state dict"),
    "missing": (
        change(lambda state: [state.pop("classifiers.1.bias"), state.pop("classifiers.2.bias")][2:]),
        r"lacks 'classifiers\.1\.bias', which layout 'pabee' of bert with 3 layers has \(2 missing\)",
    ),
    "unexpected": (
        change(lambda state: state | {"classifiers.3.bias": torch.ones(2)}),
        r"holds 'classifiers\.3\.bias', which layout 'pabee' of bert with 3 layers has not \(1 unexpected\)",
    ),
    "shape": (
        change(lambda state: state | {"classifiers.1.weight": torch.ones(2, 15)}),
        r"'classifiers\.1\.weight' is \[2, 15\]; its config\.json makes it \[2, 16\]",
    ),
    "positions": (
        change(lambda state: state | {"bert.embeddings.position_ids": torch.arange(POSITIONS)[None].flip(1)}),
        r"'bert\.embeddings\.position_ids' must count from 0 to 131",
    ),
    "other depth": (configured(num_hidden_layers=4), r"lacks 'bert\.encoder\.layer\.3\.attention"),
    "other family": (configured(model_type="roberta"), "layout 'pabee' has families bert and albert; .* 'roberta'"),
    "labels": (configured(finetuning_task="mnli"), "answers 2 labels; task 'mnli' has 3"),
    "no task": (configured(finetuning_task=None), r"names no GLUE task in finetuning_task \(None\): give --task"),
    "other task": (configured(finetuning_task="wnli"), r"finetuning_task \('wnli'\): give --task"),
}


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr()
    assert said.err.startswith("Error: ")
    assert said.err.count("\n") == 1
    assert said.out == ""
    return said.err


@pytest.mark.parametrize("damage", BAD)
def test_bad_folders_are_refused(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "theirs", "pabee", "bert")
    edit, message = BAD[damage]
    edit(tmp_path / "theirs")
    assert run("import", "--layout", "pabee", "theirs", "ours", "--max_seq_length", 16) == 2
    assert re.search(message, said := one_line(capsys)), said
    assert not (tmp_path / "ours").exists()
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max_seq_length", "133"], r"max_seq_length: must lie in 8\.\.132 for this model, found 133"),
        (["--max_seq_length", "4"], r"max_seq_length: must lie in 8\.\.132 for this model, found 4"),
        (["--task", "sst"], r"--task: .*unknown kind 'sst'.*did you mean 'sst2'"),
        (["--layout", "deebert"], r"lacks 'bert\.encoder\.highway\.0\.pooler\.dense\.weight'"),
    ],
)
def test_bad_options_are_refused(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path / "theirs", "pabee", "bert")
    given = ["--layout", "pabee", "--max_seq_length", "16", *options]
    assert run("import", *given, tmp_path / "theirs", tmp_path / "ours") == 2
    assert re.search(message, said := one_line(capsys)), said


@pytest.mark.parametrize("command", ["import", "export"])
def test_nothing_is_overwritten(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path / "theirs", "pabee", "bert")
    assert run(command, "--layout", "pabee", tmp_path / "theirs", tmp_path / "theirs") == 2
    assert "is not empty: give a new folder to write to" in one_line(capsys)


@pytest.mark.parametrize(
    ("method", "family", "message"),
    [
        (Pabee(pooling="mean"), "bert", "no place for the exits .* method pabee, head pooler, pooling mean"),
        (RomeBert(), "bert", "no place for the exits .* method romebert, .* pooler per_exit"),
        (Pabee(), "roberta", "layout 'pabee' has families bert and albert; .* is of 'roberta'"),
    ],
    ids=["pooling", "pooler", "family"],
)
def test_what_a_layout_has_no_place_for(
    method: Method, family: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tiny.checkpoint(tmp_path / "ours", family, method)
    assert run("export", "--layout", "pabee", tmp_path / "ours", tmp_path / "theirs") == 2
    assert re.search(message, said := one_line(capsys)), said
