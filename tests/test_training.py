"""Fine-tuning: both methods end to end on next to no rows, interrupted and resumed, and what each stage may change."""

import copy
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import nn
from transformers import Trainer

from models import trainer
from models.checkpoints import CONFIG, WEIGHTS, Checkpoint, is_checkpoint, load_checkpoint, load_classifier
from models.config import UserError
from models.data import TaskData
from models.encoding import collate, encode
from models.families import Fresh
from models.methods import (
    DeeBert,
    Distillation,
    FastBert,
    Method,
    Pabee,
    RomeBert,
    StageConfig,
    TrainConfig,
    last_loss,
)
from models.tables import TableTask
from models.trainer import exit_scores
from models.training import TrainingSpec, fine_tune, start_network
from tests import tiny
from tests.test_checkpoints import backbone_folder, classifier_folder

LAYERS = 3
# 64 rows: 4 steps, a score and a resumable state after every second.
TRAIN = TrainConfig(epochs=1.0, batch_size=16, learning_rate=1e-3, max_seq_length=40, evaluations_per_epoch=2)
PABEE = Pabee()
OFF_RAMPS = StageConfig(epochs=1.0, batch_size=16, learning_rate=1e-3, evaluations_per_epoch=2)
DEEBERT = DeeBert(off_ramps=OFF_RAMPS)
FASTBERT = FastBert(students=OFF_RAMPS)
ROMEBERT = RomeBert()
METHODS: list[Method] = [PABEE, DEEBERT, FASTBERT, ROMEBERT]
STAGES = {
    "pabee": ["joint"],
    "deebert": ["classifier", "off_ramps"],
    "fastbert": ["classifier", "students"],
    "romebert": ["joint"],
}

# A tiny network and rows on which the last exit and the others pull the backbone in opposite ways.
CONFLICT_SEED = 6

every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.kind)


@pytest.fixture(scope="module")
def data() -> TaskData:
    return tiny.task().load(None, seed=0)


def fresh(family: str = "bert") -> Fresh:
    return Fresh(family=family, num_layers=LAYERS, hidden_size=32, num_heads=2)  # pyright: ignore[reportArgumentType]


def spec(method: Method, family: str = "bert", **changes: Any) -> TrainingSpec:
    return TrainingSpec(
        **({"task": tiny.task(), "method": method, "backbone": fresh(family), "train": TRAIN} | changes)
    )


class Killed(BaseException):
    """Stands in for a signal: not an error that anything may catch."""


def kill_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """End the process, as it were, when training comes to its `step`-th step (counted over all stages)."""
    original, steps = Trainer.training_step, [0]

    def training_step(self: Trainer, *arguments: Any, **options: Any) -> torch.Tensor:
        steps[0] += 1
        if steps[0] == step:
            raise Killed
        return original(self, *arguments, **options)

    patch.setattr(Trainer, "training_step", training_step)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder).network.state_dict()


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.fixture(scope="module")
def trained(data: TaskData, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Checkpoint folders of undisturbed trainings, each trained once."""
    root, done = tmp_path_factory.mktemp("trained"), {}

    def train(method: Method, family: str = "bert") -> Path:
        key = method.kind, family
        if key not in done:
            done[key] = fine_tune(spec(method, family), data, root / f"{method.kind}-{family}")
        return done[key]

    return train


@pytest.mark.parametrize(
    ("method", "family"),
    [*product([PABEE, DEEBERT], tiny.FAMILIES), (FASTBERT, "albert"), (ROMEBERT, "roberta")],
    ids=lambda value: value if isinstance(value, str) else value.kind,
)
def test_a_training_leaves_a_checkpoint(method: Method, family: str, trained: Callable[..., Path], data: TaskData):
    folder = trained(method, family)
    found = load_checkpoint(folder)
    assert not folder.with_name(folder.name + ".partial").exists()
    assert found.network.num_layers == LAYERS
    assert found.training["data_hash"] == data.data_hash
    assert found.training["fit_rows"] == 64
    assert found.training["seconds"] > 0
    assert TrainingSpec.model_validate_json(json.dumps(found.training["spec"])) == spec(method, family)
    assert list(found.training["curves"]) == STAGES[method.kind]
    report = found.training["exits"]
    assert [entry["layer"] for entry in report] == [1, 2, 3]
    assert all(0 <= entry["score"] <= 1 and 0 <= entry["ece"] <= 1 for entry in report)
    for curve in found.training["curves"].values():
        assert [entry["step"] for entry in curve if "eval_score" in entry] == [2, 4]
        assert all(len(entry["eval_scores"]) == LAYERS for entry in curve if "eval_scores" in entry)
        assert all(np.isfinite(entry["loss"]) for entry in curve if "loss" in entry)


@every_method
def test_the_state_kept_is_the_best_one(method: Method, trained: Callable[..., Path], data: TaskData):
    """The saved network scores on `select` what the curve promises."""
    found = load_checkpoint(trained(method))
    select = select_batch(found, data)
    logits = tiny.all_logits(found.network, select).transpose(1, 0, 2)
    scored = exit_scores(tiny.task(), logits, data.splits["select"].labels)
    curve = [entry for entry in list(found.training["curves"].values())[-1] if "eval_scores" in entry]
    best = max(curve, key=lambda entry: entry["eval_score"])
    # Training evaluates in bfloat16 where the CPU has it: one row of 16 may fall on the other side.
    np.testing.assert_allclose(scored, best["eval_scores"], atol=1 / 16 + 1e-6)


def select_batch(found: Checkpoint, data: TaskData) -> dict[str, np.ndarray]:
    """All of `select` as one batch."""
    encoded = encode(data.splits["select"], found.tokenizer, 40)
    return collate(encoded, range(len(encoded)), 0, "longest", 40)


def test_a_finished_folder_is_left_alone(trained: Callable[..., Path], data: TaskData, monkeypatch: pytest.MonkeyPatch):
    folder = trained(PABEE)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    kill_at(monkeypatch, 1)
    assert fine_tune(spec(PABEE), data, folder) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_seed_decides_everything(trained: Callable[..., Path], data: TaskData, tmp_path: Path):
    assert_same(weights(fine_tune(spec(PABEE), data, tmp_path / "again")), weights(trained(PABEE)))
    other = weights(fine_tune(spec(PABEE, seed=43), data, tmp_path / "other"))
    assert not torch.equal(other["classifiers.0.weight"], weights(trained(PABEE))["classifiers.0.weight"])


@pytest.mark.parametrize(
    ("method", "step"),
    [(PABEE, 1), (PABEE, 2), (PABEE, 3), (PABEE, 4), (DEEBERT, 3), (DEEBERT, 5), (DEEBERT, 7)],
    ids=lambda value: value if isinstance(value, int) else value.kind,
)
def test_an_interrupted_training_ends_as_if_it_had_not_been(
    method: Method, step: int, trained: Callable[..., Path], data: TaskData, tmp_path: Path
):
    """Killed before, at and after a state was saved, in either stage."""
    folder = tmp_path / "checkpoint"
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, step)
        with pytest.raises(Killed):
            fine_tune(spec(method), data, folder)
    assert not is_checkpoint(folder)
    fine_tune(spec(method), data, folder)
    assert_same(weights(folder), weights(trained(method)))
    curves, expected = (
        [
            [{key: entry[key] for key in ("step", "loss", "eval_score") if key in entry} for entry in curve]
            for curve in load_checkpoint(given).training["curves"].values()
        ]
        for given in (folder, trained(method))
    )
    assert curves == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_a_resumed_training_remembers_how_long_nothing_improved(data: TaskData, tmp_path: Path):
    """Early stopping counts evaluations without a better score, whether or not the process died in between."""
    # A learning rate this low changes no score: the second and third evaluations are no better than the first.
    still = TRAIN.model_copy(update={"learning_rate": 1e-30, "evaluations_per_epoch": 4, "patience": 2})
    given = spec(PABEE, train=still.model_copy(update={"epochs": 2.0}))

    def evaluated(folder: Path) -> list[int]:
        curve = load_checkpoint(folder).training["curves"]["joint"]
        return [entry["step"] for entry in curve if "eval_score" in entry]

    assert evaluated(fine_tune(given, data, tmp_path / "undisturbed")) == [1, 2, 3]
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, 3)
        with pytest.raises(Killed):
            fine_tune(given, data, tmp_path / "resumed")
    assert evaluated(fine_tune(given, data, tmp_path / "resumed")) == [1, 2, 3]


def test_a_state_that_was_half_written_is_passed_over(trained: Callable[..., Path], data: TaskData, tmp_path: Path):
    """Killed while saving: the newest state has no weights, the one before it is whole."""
    folder = tmp_path / "checkpoint"
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, 3)
        with pytest.raises(Killed):
            fine_tune(spec(PABEE), data, folder)
    stage = tmp_path / "checkpoint.partial" / "joint"
    assert [path.name for path in stage.iterdir()] == ["checkpoint-2"]
    (stage / "checkpoint-4").mkdir()
    fine_tune(spec(PABEE), data, folder)
    assert_same(weights(folder), weights(trained(PABEE)))


def learned(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Names of the parameters that changed."""
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def is_off_ramp(name: str) -> bool:
    kind, _, rest = name.partition(".")
    return kind in ("poolers", "classifiers") and int(rest.partition(".")[0]) < LAYERS - 1


def around_stages(training: TrainingSpec, data: TaskData, folder: Path) -> list[dict[str, torch.Tensor]]:
    """The weights before, between and after the two stages of a method."""
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, 5)  # the first step of the second stage
        with pytest.raises(Killed):
            fine_tune(training, data, folder / "checkpoint")
    torch.manual_seed(training.seed)
    start = start_network(training)[0].state_dict()
    between = torch.load(folder / "checkpoint.partial" / "classifier.pt", weights_only=True)["state"]
    return [start, between, weights(fine_tune(training, data, folder / "checkpoint"))]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_deebert_trains_the_network_and_then_its_off_ramps(family: str, data: TaskData, tmp_path: Path):
    """Stage 1 leaves the off-ramps as they were, stage 2 everything else: to the bit."""
    start, between, end = around_stages(spec(DEEBERT, family), data, tmp_path)
    changed = learned(start, between)
    assert not any(is_off_ramp(name) for name in changed)
    assert {f"classifiers.{LAYERS - 1}.weight", f"poolers.{LAYERS - 1}.weight"} <= changed
    assert any(name.startswith("backbone.") for name in changed)
    changed = learned(between, end)
    assert changed == {name for name in end if is_off_ramp(name)}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_fastbert_trains_a_teacher_and_then_its_students(family: str, data: TaskData, tmp_path: Path):
    """Stage 1 leaves the students as they were, stage 2 the backbone and the teacher: to the bit."""
    start, between, end = around_stages(spec(FASTBERT, family), data, tmp_path)
    students = {name for name in end if name.startswith("heads.") and not name.startswith(f"heads.{LAYERS - 1}.")}
    assert not learned(start, between) & students
    # Softmax forgets what a key's bias adds: its gradient is 0 but for the last bits.
    assert {name for name in students if "key.bias" not in name} <= learned(between, end) <= students


def test_romebert_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One step of the Trainer, in float32, leaves the gradients of the rule, written out on one flat vector."""
    monkeypatch.setattr(trainer, "has_bfloat16", lambda: False)
    network = tiny.network("bert", tiny.DEEBERT, num_labels=3, seed=CONFLICT_SEED)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    rows = tiny.encoded(16, seed=CONFLICT_SEED)
    inputs, labels = tiny.tensors(tiny.batch(rows, range(16), "bert")), torch.from_numpy(rows.labels)
    (stage,) = ROMEBERT.stages(network, fine_tuned=False)
    learner = trainer.StageTrainer(
        TRAIN,
        network.backbone,
        None,
        model=trainer.Objective(network, stage, []),
        args=trainer.training_arguments(tmp_path, TRAIN, rows=16, seed=0, grouped=False),
        train_dataset=[],
        eval_dataset=[],
    )
    learner.training_step(learner.model, inputs | {"labels": labels})
    found = {name: parameter.grad for name, parameter in network.named_parameters()}

    names, parameters = zip(*network.named_parameters(), strict=True)
    logits = network(**inputs)
    losses = last_loss(logits, labels), ROMEBERT.loss(logits, labels)
    last, whole = (
        dict(zip(names, torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True), strict=True))
        for loss in losses
    )
    shared = [name for name in names if name.startswith("backbone.")]
    along = torch.cat([last[name].flatten() for name in shared])
    rest = torch.cat([(whole[name] - last[name]).flatten() for name in shared])
    assert rest @ along < 0, "no conflict: choose another seed"
    share = rest @ along / (along @ along)
    for name in names:
        expected = whole[name] - share * last[name] if name in shared else whole[name]
        difference = found[name] - expected
        assert difference.norm() <= 1e-3 * expected.norm() + 1e-7, (name, difference.norm(), expected.norm())


def test_romebert_without_regularization_protects_nothing():
    network = tiny.network("bert", tiny.DEEBERT, num_layers=2)
    assert RomeBert(gradient_regularization=False).stages(network, fine_tuned=False)[0].protected is None


def test_a_learning_rate_of_its_own_for_the_exits(data: TaskData, tmp_path: Path):
    still = TRAIN.model_copy(update={"learning_rate": 1e-30, "exits_learning_rate": 1e-2})
    torch.manual_seed(spec(PABEE).seed)
    start = start_network(spec(PABEE))[0].state_dict()
    end = weights(fine_tune(spec(PABEE, train=still), data, tmp_path / "checkpoint"))
    changed = {name for name in start if (end[name] - start[name]).abs().max() > 1e-6}
    assert changed == {name for name in start if not name.startswith("backbone.")}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_exits_for_a_classifier_that_is_already_fine_tuned(family: str, data: TaskData, tmp_path: Path):
    """DeeBERT's second stage alone: the classifier answers as before, to the bit, and its off-ramps have learned."""
    classifier_folder(tmp_path / "theirs", family)
    start, _ = load_classifier(str(tmp_path / "theirs"), DEEBERT.exits, 2)
    before = copy.deepcopy(start.state_dict())
    method = DeeBert(off_ramps=OFF_RAMPS, distillation=Distillation())
    given = spec(method, backbone=None, classifier=str(tmp_path / "theirs"))
    found = load_checkpoint(fine_tune(given, data, tmp_path / "ours"))
    assert list(found.training["curves"]) == ["off_ramps"]
    after, last = found.network.state_dict(), start.num_layers - 1
    changed = learned({name: tensor for name, tensor in before.items() if name in after}, after)
    ramps = {name for name in after if name.split(".")[0] in ("poolers", "classifiers") and f".{last}." not in name}
    assert {name for name in changed if not name.startswith("classifiers.")} <= ramps
    inputs = select_batch(found, data)
    expected = tiny.all_logits(start.eval(), inputs)[-1]
    np.testing.assert_allclose(tiny.all_logits(found.network, inputs)[-1], expected, atol=1e-5, rtol=0)


def regression_task(folder: Path) -> TableTask:
    """Sentences whose target is how many words they have, in thirds of ten."""
    random = np.random.default_rng(0)
    words = ["plot", "cast", "music", "dull", "fine"]
    for name, rows in (("train", 80), ("dev", 12)):
        lengths = random.integers(1, 13, rows)
        texts = [f"{name} {i} " + " ".join(random.choice(words, n)) for i, n in enumerate(lengths)]
        lines = [f"{text}\t{n / 3:.3f}" for text, n in zip(texts, lengths, strict=True)]
        (folder / f"{name}.tsv").write_text("\n".join(["text\tscore", *lines]) + "\n")
    return TableTask(
        kind="table", name="lengths", train="train.tsv", dev="dev.tsv", text=["text"], label="score", metric="pearson"
    )


@every_method
def test_regression(method: Method, tmp_path: Path):
    task = regression_task(tmp_path)
    data = task.load(tmp_path, seed=0)
    backbone_folder(tmp_path / "backbone", "bert")
    given = TrainingSpec.model_validate(
        {"task": task, "method": method, "backbone": str(tmp_path / "backbone"), "train": TRAIN}
    )
    found = load_checkpoint(fine_tune(given, data, tmp_path / "checkpoint"))
    assert found.network.num_labels == 1
    scores = [
        entry["eval_score"] for curve in found.training["curves"].values() for entry in curve if "eval_score" in entry
    ]
    assert all(-1 <= score <= 1 for score in scores)


def test_max_rows(data: TaskData, tmp_path: Path):
    given = spec(PABEE, train=TRAIN.model_copy(update={"max_rows": 16}))
    found = load_checkpoint(fine_tune(given, data, tmp_path / "checkpoint"))
    assert found.training["fit_rows"] == 16
    assert max(entry["step"] for entry in found.training["curves"]["joint"]) == 1


def test_one_process_at_a_time_fine_tunes_a_checkpoint(data: TaskData, tmp_path: Path):
    (tmp_path / "checkpoint.partial").mkdir()
    with (
        FileLock(tmp_path / "checkpoint.partial" / ".lock"),
        pytest.raises(UserError, match="another process is fine-"),
    ):
        fine_tune(spec(PABEE), data, tmp_path / "checkpoint")
    fine_tune(spec(PABEE), data, tmp_path / "checkpoint")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_the_last_exit_of_deebert_teaches_without_dropout():
    network = tiny.network("bert", tiny.DEEBERT, num_layers=2)
    network.dropout.p = 0.5
    exits = trainer._ExitsOnFeatures(network).train()
    features = torch.randn(64, 2, network.backbone.config.hidden_size)
    first, second = exits(features), exits(features)
    assert torch.equal(first[-1], second[-1])
    assert not torch.equal(first[0], second[0])


def test_a_diverged_training_is_refused(data: TaskData, tmp_path: Path):
    given = spec(PABEE, train=TRAIN.model_copy(update={"learning_rate": 1e38}))
    with pytest.raises(UserError, match=r"diverged.*lower learning_rate") as error:
        fine_tune(given, data, tmp_path / "checkpoint")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "checkpoint" / WEIGHTS).exists()
    assert not (tmp_path / "checkpoint" / CONFIG).exists()


def test_folders_are_named_by_all_that_decides_them(data: TaskData):
    base = spec(PABEE)
    assert base.folder_name(data.data_hash).startswith("synthetic-pabee-bert-3x32-")
    others = [
        spec(DEEBERT),
        spec(PABEE, "albert"),
        spec(PABEE, seed=1),
        spec(Pabee(pooling="mean")),
        spec(PABEE, train=TRAIN.model_copy(update={"epochs": 2.0})),
        spec(PABEE, task=tiny.task(min_words=30)),
    ]
    names = {given.folder_name(data.data_hash) for given in [base, *others]} | {base.folder_name("other")}
    assert len(names) == len(others) + 2
    assert base.folder_name(data.data_hash) == spec(PABEE).folder_name(data.data_hash)
