"""The command lines of PABEE's and DeeBERT's READMEs and scripts, with script name, model and data paths replaced."""

import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel, AutoTokenizer

from benchmarks import reference
from benchmarks.__main__ import main
from benchmarks.reference_training import training_spec
from models.checkpoints import load_checkpoint
from models.reference import read_reference, task_named
from models.trainer import training_arguments
from quant.engine import Eager, OpenVino
from tests.reference_folders import State, configuration, forward, write, write_tokenizer

LAYERS, DEV_ROWS = 6, 24
HEADERS = {
    "MRPC": "Quality|#1 ID|#2 ID|#1 String|#2 String",
    "STS-B": "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2|score",
    "MNLI": "index|promptID|pairID|genre|sentence1_binary_parse|sentence2_binary_parse|sentence1_parse|sentence2_parse"
    "|sentence1|sentence2|label1|gold_label",
}
CELLS = {
    "MRPC": ("#1 String", "#2 String", "Quality", ["0", "1"]),
    "STS-B": ("sentence1", "sentence2", "score", ["0.5", "1.250", "3.8", "5.0"]),
    "MNLI": ("sentence1", "sentence2", "gold_label", ["contradiction", "entailment", "neutral"]),
}
# bert-loses-patience/README.md
PABEE_TRAINING = """
  --model_type {type} --model_name_or_path {model} --task_name {task} --do_train --do_eval --do_lower_case
  --data_dir {data}/{task} --max_seq_length 128 --per_gpu_train_batch_size 32 --per_gpu_eval_batch_size 32
  --learning_rate 2e-5 --save_steps 50 --logging_steps 50 --num_train_epochs 5 --output_dir {save}
  --evaluate_during_training
"""
PABEE_INFERENCE = """
  --model_type {type} --model_name_or_path {save} --task_name {task} --do_eval --do_lower_case
  --data_dir {data}/{task} --max_seq_length 128 --per_gpu_eval_batch_size 1 --learning_rate 2e-5 --logging_steps 50
  --num_train_epochs 15 --output_dir {save} --eval_all_checkpoints --patience 3,4,5,6,7,8
"""
# deebert/train_deebert.sh, eval_deebert.sh and entropy_eval.sh
DEEBERT_TRAINING = """
  --model_type {type} --model_name_or_path {model} --task_name {task} --do_train --do_eval --do_lower_case
  --data_dir {data}/{task} --max_seq_length 128 --per_gpu_eval_batch_size=1 --per_gpu_train_batch_size=8
  --learning_rate 2e-5 --num_train_epochs {epochs} --overwrite_output_dir --seed 42
  --output_dir ./saved_models/{type}-base/{task}/two_stage --plot_data_dir ./results/ --save_steps 0 --overwrite_cache
  --eval_after_first_stage
"""
DEEBERT_EVALUATION = """
  --model_type {type} --model_name_or_path ./saved_models/{type}-base/{task}/two_stage --task_name {task} --do_eval
  --do_lower_case --data_dir {data}/{task} --output_dir ./saved_models/{type}-base/{task}/two_stage
  --plot_data_dir ./results/ --max_seq_length 128 --eval_each_highway --eval_highway --overwrite_cache
  --per_gpu_eval_batch_size=1
"""
DEEBERT_ENTROPY = """
  --model_type {type} --model_name_or_path ./saved_models/{type}-base/{task}/two_stage --task_name {task} --do_eval
  --do_lower_case --data_dir {data}/{task} --output_dir ./saved_models/{type}-base/{task}/two_stage
  --plot_data_dir ./results/ --max_seq_length 128 --early_exit_entropy {entropy} --eval_highway --overwrite_cache
  --per_gpu_eval_batch_size=1
"""
ENTROPIES = ["0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7"]


@pytest.fixture
def _stepped(monkeypatch: pytest.MonkeyPatch) -> None:
    """In PyTorch, which opens at once; that all programs answer alike is tested elsewhere."""
    monkeypatch.setattr(reference, "OpenVino", Eager)


stepped = pytest.mark.usefixtures("_stepped")


@pytest.fixture(autouse=True)
def _as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reference, "processors", lambda: [0])  # threads that wait for each other are slow when tiny
    yield
    logging.disable(logging.NOTSET)


def write_task(folder: Path, task: str, train_rows: int = 60) -> None:
    """A task in GLUE's files, without a pair of texts that stands there twice."""
    random = np.random.default_rng(0)
    first, second, label, labels = CELLS[task]
    (folder / task).mkdir(parents=True)
    dev = ["dev_matched", "dev_mismatched"] if task == "MNLI" else ["dev"]
    number = 0
    for split, rows in [("train", train_rows), *((name, DEV_ROWS) for name in dev)]:
        lines = [HEADERS[task].replace("|", "\t")]
        for _ in range(rows):
            number += 1
            # The number in binary makes every text another one, in two words that all the vocabularies tell apart.
            told = " ".join("a" if bit == "1" else "." for bit in f"{number:b}")
            other = " ".join(random.choice(["a", "films", "Fine", "."], random.integers(1, 6)))
            cells = {first: told, second: other, label: labels[random.integers(len(labels))]}
            lines.append("\t".join(cells.get(column, "-") for column in HEADERS[task].split("|")))
        (folder / task / f"{split}.tsv").write_text("\n".join(lines) + "\n")


def write_pretrained(folder: Path, layout: str, family: str) -> None:
    """A model that no task has seen."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(configuration(layout, family, 2, None, LAYERS)))
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    write_tokenizer(folder, family)


def run(layout: str, flags: str, **paths: object) -> int:
    return main(["reference", layout, *flags.format(**paths).split()])


def results(folder: Path) -> dict[str, float]:
    lines = (folder / "eval_results.txt").read_text().splitlines()
    assert lines == sorted(lines)
    return {name: float(score) for name, score in (line.split(" = ") for line in lines)}


# --- the command lines ------------------------------------------------------------------------------------------------


@stepped
@pytest.mark.parametrize("family", ["albert", "bert"])
def test_pabee(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_task(tmp_path / "glue", "MRPC", train_rows=400)
    write_pretrained(tmp_path / "model", "pabee", family)
    paths = {"type": family, "model": "model", "task": "MRPC", "data": "glue", "save": tmp_path / "save"}
    assert run("pabee", PABEE_TRAINING, **paths) == 0
    said = capsys.readouterr().out
    save = tmp_path / "save"
    assert results(save).keys() == {"acc", "f1", "acc_and_f1"}
    assert results(save)["acc_and_f1"] == (results(save)["acc"] + results(save)["f1"]) / 2
    assert said.count("'eval_score': ") == 5  # 50 steps are more than an epoch: once in each
    written = {"bert": "vocab.txt", "albert": "spiece.model"}[family]
    for folder in (save, save / "checkpoint-50"):
        assert {"pytorch_model.bin", "config.json", written} <= {path.name for path in folder.iterdir()}
    # Ours, beside it, is the same network, and says how it came to be.
    ours = load_checkpoint(next(save.glob("mrpc-pabee-model-*")))
    assert ours.training["spec"]["train"]["batch_size"] == 32
    theirs = read_reference("pabee", save, None, 128).network.state_dict()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.network.state_dict().items())

    assert run("pabee", PABEE_INFERENCE, **paths) == 0
    said = capsys.readouterr().out
    assert re.findall(r"Evaluation for checkpoint ?(.*)", said) == ["", "checkpoint-50"]
    line = r"\*\*\* Patience = (\d) Avg\. Inference Layers = (\d\.\d\d) Layer Saving = (\d\.\d\d) \*\*\*"
    found = re.findall(line, said)
    assert [patience for patience, *_ in found] == list("345678") * 2
    for patience, mean, saving in found:
        assert min(int(patience) + 1, LAYERS) <= float(mean) <= LAYERS
        assert abs(1 - float(mean) / LAYERS - float(saving)) < 0.01
    assert said.count("  acc = ") == 12
    assert results(save / "checkpoint-50").keys() == results(save).keys()


@stepped
@pytest.mark.parametrize(("family", "epochs"), [("bert", 3), ("roberta", 10)])
def test_deebert(family: str, epochs: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_task(tmp_path / "glue", "MRPC")
    write_pretrained(tmp_path / "model", "deebert", family)
    paths = {"type": family, "model": "./model", "task": "MRPC", "data": "glue", "epochs": epochs}
    saved = Path("saved_models", f"{family}-base", "MRPC", "two_stage")
    assert run("deebert", DEEBERT_TRAINING, **paths) == 0
    said = capsys.readouterr().out
    first, _, last = said.partition("Evaluation for checkpoint")
    scores = [re.findall(r"^  (\w+) = (.*)$", part, re.MULTILINE) for part in (first, last)]
    assert scores[0] == scores[1] != []  # the second stage leaves the network as it is
    curves = load_checkpoint(next(saved.glob("mrpc-deebert-model-*"))).training["curves"]
    assert {stage: curve[-1]["epoch"] for stage, curve in curves.items()} == {"classifier": epochs, "off_ramps": epochs}
    assert not list(saved.glob("checkpoint-*"))  # --save_steps 0
    assert not Path("results").exists()
    full = results(saved)

    assert run("deebert", DEEBERT_EVALUATION, **paths) == 0
    said = capsys.readouterr().out
    each = np.load(Path("results", saved, "each_layer.npy"))
    assert each.shape == (LAYERS,)
    assert each[-1] == full["f1"] == results(saved)["f1"]
    assert "Score of each layer: " + " ".join(f"{100 * score:.2f}" for score in each) in said
    assert f"Exit layer counter: {dict.fromkeys(range(1, LAYERS), 0) | {LAYERS: DEV_ROWS}}" in said
    assert list(Path("results", saved).iterdir()) == [Path("results", saved, "each_layer.npy")]

    for entropy in ENTROPIES:
        assert run("deebert", DEEBERT_ENTROPY, entropy=entropy, **paths) == 0
        said = capsys.readouterr().out
        held = np.load(Path("results", saved, f"entropy_{float(entropy)}.npy"), allow_pickle=True)
        counts, seconds, cost, score = held
        assert list(counts) == list(range(1, LAYERS + 1))
        assert sum(counts.values()) == DEV_ROWS
        assert cost == pytest.approx(sum(layer * rows for layer, rows in counts.items()) / (DEV_ROWS * LAYERS))
        assert seconds > 0
        assert score == results(saved)["f1"]
        assert f"Exit layer counter: {counts}\nExpected saving: {1 - cost}\n" in said
        assert f"Entropy={float(entropy)}\tResult={100 * score:.2f}" in said
        if entropy == "0":
            assert (cost, score) == (1.0, full["f1"])
        if entropy == "0.7":  # above ln 2
            assert counts[1] == DEV_ROWS
            assert score == each[0]


# --- what the originals would answer ----------------------------------------------------------------------------------


def dev_rows(data: Path, folder: Path) -> tuple[list[list[int]], list[list[int]], np.ndarray]:
    """Token ids, token types and labels of MRPC's dev rows."""
    lines = [line.split("\t") for line in (data / "MRPC" / "dev.tsv").read_text().splitlines()[1:]]
    encoded = AutoTokenizer.from_pretrained(folder)([line[3] for line in lines], [line[4] for line in lines])
    types = encoded.get("token_type_ids") or [[0] * len(ids) for ids in encoded["input_ids"]]
    return encoded["input_ids"], types, np.array([int(line[0]) for line in lines])


def original(folder: Path, state: State, layout: str, family: str, data: Path) -> tuple[np.ndarray, np.ndarray]:
    """The logits [N, L, C] of an original folder, by hand, and labels [N]."""
    ids, types, labels = dev_rows(data, folder)
    logits = [forward(state, layout, family, *row, layers=LAYERS).numpy() for row in zip(ids, types, strict=True)]
    return np.stack(logits), labels


def patient(logits: np.ndarray, patience: int) -> tuple[int, int]:
    """Where PABEE leaves a row [L, C], and what it answers."""
    count, previous = 0, None
    for layer, answer in enumerate(logits.argmax(-1), start=1):
        count = count + 1 if answer == previous else 0
        previous = answer
        if count == patience:
            return layer, answer
    return len(logits), int(logits[-1].argmax())


@pytest.mark.parametrize(
    ("family", "more", "engine"),
    [
        ("albert", "", OpenVino),
        ("bert", "", Eager),
        ("bert", "--reference_compat", Eager),
        ("bert", "--per_gpu_eval_batch_size 8", Eager),
    ],
)
def test_pabee_answers_as_the_original(
    family: str,
    more: str,
    engine: type,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(reference, "OpenVino", engine)
    write_task(tmp_path / "glue", "MRPC")
    state = write(tmp_path / "save", "pabee", family, layers=LAYERS)
    logits, labels = original(tmp_path / "save", state, "pabee", family, tmp_path / "glue")
    flags = PABEE_INFERENCE.replace("3,4,5,6,7,8", "0,1,2") + more
    assert run("pabee", flags, type=family, save="save/", task="MRPC", data="glue") == 0
    said = capsys.readouterr().out
    accuracies = [float(score) for score in re.findall(r"^  acc = (.*)$", said, re.MULTILINE)]
    assert accuracies[0] == np.mean(logits[:, -1].argmax(-1) == labels)
    name = "Speed Up" if "compat" in more else "Layer Saving"
    means = []
    for patience, accuracy in zip((1, 2), accuracies[1:], strict=True):
        layers, answers = zip(*(patient(row, patience) for row in logits), strict=True)
        means.append(np.mean(layers))
        told = f"{means[-1]:.2f} {name} = {1 - means[-1] / LAYERS:.2f}"
        assert f"*** Patience = {patience} Avg. Inference Layers = {told} ***" in said
        assert accuracy == np.mean(np.array(answers) == labels)
    assert 2 < means[0] < means[1] < LAYERS


def entropy_of(logits: np.ndarray) -> float:
    p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    return float(-(p * np.log(p)).sum())


def doubtful(logits: np.ndarray, last: np.ndarray | None, tau: float) -> tuple[int, int]:
    """Where DeeBERT leaves a row [L, C], and what it answers; `last` [C] is the off-ramp after the last layer."""
    for layer, exit_ in enumerate(logits[:-1], start=1):
        if entropy_of(exit_) < tau:
            return layer, int(exit_.argmax())
    sure = last is not None and entropy_of(last) < tau
    return len(logits), int((last if sure else logits[-1]).argmax())


@pytest.mark.parametrize(("family", "engine"), [("bert", OpenVino), ("roberta", Eager)])
def test_deebert_answers_as_the_original(
    family: str, engine: type, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """With its last off-ramp, which nothing trains, only where it is asked to."""
    write_task(tmp_path / "glue", "MRPC")
    folder = tmp_path / "saved_models" / f"{family}-base" / "MRPC" / "two_stage"
    folder.parent.mkdir(parents=True)
    state = write(folder, "deebert", family, layers=LAYERS)
    logits, labels = original(folder, state, "deebert", family, tmp_path / "glue")
    off_ramp = f"{family}.encoder.highway.{LAYERS - 1}"
    # The off-ramp after the last layer: sure of the opposite of what the classifier answers.
    last = -8 * logits[:, -1]
    for kind, sign in (("weight", 1), ("bias", -1)):
        state[f"{off_ramp}.pooler.dense.{kind}"] = -state[f"{family}.pooler.dense.{kind}"]
        state[f"{off_ramp}.classifier.{kind}"] = 8 * sign * state[f"classifier.{kind}"]
    torch.save(state, folder / "pytorch_model.bin")
    # A threshold at which half of the rows come to the last layer.
    tau = float(np.median([min(entropy_of(exit_) for exit_ in row[:-1]) for row in logits]))
    answered = {}
    for compat in (False, True):
        monkeypatch.setattr(reference, "OpenVino", engine if compat else Eager)
        expected = [doubtful(row, end if compat else None, tau) for row, end in zip(logits, last, strict=True)]
        paths = {"type": family, "task": "MRPC", "data": "glue", "entropy": tau}
        assert run("deebert", DEEBERT_ENTROPY + "--reference_compat" * compat, **paths) == 0
        held = np.load(Path("results", folder.relative_to(tmp_path), f"entropy_{tau}.npy"), allow_pickle=True)
        layers = [layer for layer, _ in expected]
        assert held[0] == {layer: layers.count(layer) for layer in range(1, LAYERS + 1)}
        cost = np.mean(layers) / LAYERS
        assert held[2] == pytest.approx(cost)
        assert f"Expected saving: {held[2] if compat else 1 - held[2]}\n" in capsys.readouterr().out
        accuracy = np.mean([answer for _, answer in expected] == labels)
        assert results(folder)["acc"] == accuracy
        answered[compat] = [answer for _, answer in expected]
    assert answered[False] != answered[True]


@stepped
def test_where_npy_files_go(tmp_path: Path):
    """The original leaves out the model path's first two characters, whatever they are."""
    write_task(tmp_path / "glue", "MRPC")
    write(tmp_path / "models", "deebert", "bert", layers=LAYERS)
    flags = DEEBERT_EVALUATION.replace("./saved_models/{type}-base/{task}/two_stage", "models")
    paths = {"type": "bert", "task": "MRPC", "data": "glue"}
    assert run("deebert", flags, **paths) == 0
    assert Path("results/models/each_layer.npy").is_file()
    assert run("deebert", flags + "--reference_compat", **paths) == 0
    assert Path("results/dels/each_layer.npy").is_file()


@stepped
def test_mnli_is_scored_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_task(tmp_path / "glue", "MNLI")
    write(tmp_path / "save", "pabee", "bert", 3, "mnli", LAYERS)
    paths = {"type": "bert", "save": "save", "task": "MNLI", "data": "glue"}
    assert run("pabee", PABEE_INFERENCE.replace("3,4,5,6,7,8", "2"), **paths) == 0
    assert results(Path("save")).keys() == {"mnli/acc"}
    assert results(Path("save-MM")).keys() == {"mnli-mm/acc"}
    assert re.findall(r"^  (\S+) = ", capsys.readouterr().out, re.MULTILINE) == ["mnli/acc", "mnli-mm/acc"]


@stepped
def test_stsb_takes_a_threshold(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_task(tmp_path / "glue", "STS-B")
    write(tmp_path / "save", "pabee", "bert", 1, "sts-b", LAYERS)
    paths = {"type": "bert", "save": "save", "task": "STS-B", "data": "glue"}
    flags = PABEE_INFERENCE.replace("3,4,5,6,7,8", "1")
    means = []
    for threshold in ("0.1", "1e9"):
        assert run("pabee", f"{flags} --regression_threshold {threshold}", **paths) == 0
        means += re.findall(r"Avg\. Inference Layers = (\S+)", capsys.readouterr().out)
    assert float(means[0]) > float(means[1]) == 2
    assert results(Path("save")).keys() == {"pearson", "spearmanr", "corr"}
    assert run("pabee", flags, **paths) == 2
    assert "--regression_threshold: must be above 0" in capsys.readouterr().err


# --- flags ------------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 5000),
    batch=st.integers(1, 64),
    accumulated=st.integers(1, 4),
    epochs=st.floats(0.1, 20),
    max_steps=st.one_of(st.just(-1), st.integers(2, 3000)),
    share=st.floats(0, 0.9),
)
def test_steps_are_those_asked_for(
    rows: int, batch: int, accumulated: int, epochs: float, max_steps: int, share: float
):
    size = batch * accumulated
    steps = max_steps if max_steps > 0 else int(np.ceil(int(np.ceil(rows / size)) * epochs))
    warmup = int(share * (steps - 1))
    options: Any = SimpleNamespace(
        script="deebert",
        model_name_or_path="model",
        per_gpu_train_batch_size=batch,
        gradient_accumulation_steps=accumulated,
        num_train_epochs=epochs,
        max_steps=max_steps,
        warmup_steps=warmup,
        learning_rate=2e-5,
        weight_decay=0.01,
        logging_steps=50,
        max_seq_length=128,
        seed=1,
    )
    spec = training_spec(options, task_named("MRPC"), rows)
    arguments = training_arguments(Path("unwritten"), spec.train, rows, spec.seed, grouped=True)
    assert (arguments.max_steps, arguments.warmup_steps) == (steps, warmup)
    assert arguments.per_device_train_batch_size == size
    # No stage stops early, and the second is trained as the first.
    assert spec.train.patience >= arguments.max_steps / arguments.eval_steps
    assert spec.method.model_dump()["off_ramps"]["epochs"] == spec.train.epochs


@stepped
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "nothing to do: give --do_train, --do_eval or both"),
        ("--do_eval --local_rank 0", "--local_rank: must be -1 here, found 0"),
        ("--do_train --adam_epsilon 1e-6", "--adam_epsilon: must be 1e-08 here, found 1e-06"),
        ("--do_train --max_grad_norm 5", "--max_grad_norm: must be 1.0 here, found 5.0"),
        ("--do_eval --tokenizer_name other", "--tokenizer_name other: must stand in the model's own folder"),
        ("--do_eval --per_gpu_eval_batch_size 0", "--per_gpu_eval_batch_size: must be at least 1, found 0"),
        ("--do_train", "'save' is not empty: add --overwrite_output_dir"),
        ("--do_eval --task_name mrcp", "unknown task 'mrcp'; allowed: cola, sst-2, .*did you mean 'mrpc'"),
        ("--do_eval --data_dir nowhere", "no train.tsv in nowhere"),
        ("--do_eval --model_type albert", "--model_type albert: 'save' is of family bert"),
        ("--do_eval --output_dir empty", "'empty' holds no config.json"),
        ("--do_eval --output_dir empty --eval_all_checkpoints", "'empty' holds no pytorch_model.bin"),
        ("--do_eval --max_seq_length 512", r"max_seq_length: must lie in 8\.\.132 for this model, found 512"),
        ("--do_train --output_dir new", "'save' is fine-tuned already"),
        ("--do_train --output_dir new --model_name_or_path nowhere", "backbone 'nowhere' is neither"),
        ("--do_train --output_dir new --model_name_or_path model --max_seq_length 512", r"must lie in 8\.\.132"),
        ("--do_train --output_dir new --model_name_or_path model --learning_rate 0", "learning_rate: .*greater than 0"),
        (
            "--do_eval --reference_compat --patience 3 --per_gpu_eval_batch_size 8",
            "--per_gpu_eval_batch_size: the original takes 1 row at a time, found 8",
        ),
    ],
)
def test_what_is_refused(flags: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_task(tmp_path / "glue", "MRPC")
    write(tmp_path / "save", "pabee", "bert", layers=LAYERS)
    write_pretrained(tmp_path / "model", "pabee", "bert")
    required = "--data_dir glue/MRPC --output_dir save --model_type bert --model_name_or_path save --task_name MRPC "
    assert run("pabee", required + flags) == 2
    *_, line = capsys.readouterr().err.splitlines()  # after the bars of `transformers`
    assert line.startswith("Error: ")
    assert re.search(message, line), line
    assert not (tmp_path / "new").exists()


def test_entropy_of_a_regression_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_task(tmp_path / "glue", "STS-B")
    paths = {"type": "bert", "task": "STS-B", "data": "glue", "entropy": "0.1"}
    assert run("deebert", DEEBERT_ENTROPY, **paths) == 2
    assert "--early_exit_entropy: needs class probabilities, STS-B is a regression" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda flags: flags + " --patience 3,x", "must be counts with commas between them, such as 3,4,5"),
        (lambda flags: flags + " --patiences 3", "unrecognized arguments: --patiences 3"),
        (lambda flags: flags + " --early_exit_entropy 0.1", "unrecognized arguments"),
        (lambda flags: flags.replace("--task_name {task}", ""), "required: --task_name"),
    ],
    ids=["counts", "unknown", "deebert's", "required"],
)
def test_flags_that_argparse_refuses(change: Callable[[str], str], message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        run("pabee", change(PABEE_INFERENCE), type="bert", save="save", task="MRPC", data="glue")
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@stepped
def test_what_is_not_read_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_task(tmp_path / "glue", "MRPC")
    write(tmp_path / "save", "pabee", "bert", layers=LAYERS)
    flags = PABEE_INFERENCE.replace("3,4,5,6,7,8", "0") + "--fp16 --fp16_opt_level O2 --cache_dir cache --no_cuda"
    assert run("pabee", flags, type="bert", save="save", task="MRPC", data="glue") == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Note: ")]
    assert [note.split()[1] for note in notes] == ["--fp16", "--cache_dir"]
