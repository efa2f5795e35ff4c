"""Exported models: what is served is what was trained, without PyTorch, and only if nothing was altered."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.checkpoints import Checkpoint, load_checkpoint
from models.config import UserError
from models.encoding import collate, encode
from models.methods import Pabee
from models.policies import Entropy, Fixed, Imposed, Patience, replay
from quant import artefact
from quant.__main__ import main
from quant.artefact import ArtefactError, EarlyExitModel
from quant.engine import SERVING, OnnxRuntime, OpenVino
from quant.export import export
from quant.recipes import Float32, Int8Dynamic, Int8Native, Int8Static, apply_recipe
from tests import tiny

ROWS = 12
EXITS = [1, 2, 3, 4]
POLICY = Entropy(threshold=0.5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("trained") / "checkpoint"
    tiny.checkpoint(folder, "bert", Pabee(pooler="per_exit"))
    return load_checkpoint(folder)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [pair[0] for pair in tiny.task(dev_rows=ROWS).load(None, seed=0).splits["dev"].texts]


@pytest.fixture(scope="module")
def folders(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A float32 export with entropy exits, for each engine that serves one."""
    made = {name: tmp_path_factory.mktemp(name) / "served" for name in SERVING}
    for name, engine in SERVING.items():
        export(made[name], checkpoint, tiny.task(), None, Float32(), POLICY, EXITS, engine=engine)
    return made


@pytest.fixture(scope="module")
def folder(folders: dict[str, Path]) -> Path:
    return folders["openvino"]


def arrays(checkpoint: Checkpoint, texts: list[str]) -> dict[str, np.ndarray]:
    """The same texts through the tokenizer that trained."""
    rows = tiny.task(dev_rows=ROWS).load(None, seed=0).splits["dev"]
    assert [pair[0] for pair in rows.texts] == texts
    encoded = encode(rows, checkpoint.tokenizer, 40)
    return collate(encoded, range(len(encoded)), 0, "longest", 40)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 2.0])
@pytest.mark.parametrize("batch_size", [1, 5, ROWS])
@pytest.mark.parametrize("engine", SERVING)
def test_answers_are_those_of_the_network(
    engine: str, threshold: float, batch_size: int, checkpoint: Checkpoint, folders: dict[str, Path], texts: list[str]
):
    found = EarlyExitModel.load(folders[engine]).predict(texts, batch_size=batch_size, threshold=threshold)
    logits = tiny.all_logits(checkpoint.network, arrays(checkpoint, texts))
    expected = replay(Entropy(threshold=threshold), logits, EXITS)
    assert (expected.margin > 1e-4).all()
    np.testing.assert_array_equal(found.exit_layer, expected.exit_layer)
    names = tiny.task().label_names
    assert found.labels == [names[i] for i in expected.logits.argmax(-1)]
    powers = np.exp(expected.logits - expected.logits.max(-1, keepdims=True))
    np.testing.assert_allclose(found.scores, powers / powers.sum(-1, keepdims=True), atol=1e-5)


def test_int8_is_what_the_engine_runs(checkpoint: Checkpoint, tmp_path: Path, texts: list[str]):
    """To the bit, with its own calibration and a choice of exits."""
    recipe, policy, exits = Int8Static(calibration_rows=4), Patience(patience=1), [2, 4]
    data = tiny.task(dev_rows=ROWS).load(None, seed=0)
    export(tmp_path / "served", checkpoint, tiny.task(), data, recipe, policy, exits)
    rows = encode(data.splits["fit"], checkpoint.tokenizer, 40)
    found = EarlyExitModel.load(tmp_path / "served").predict(texts)
    from quant.recipes import calibration_indices

    chosen = calibration_indices(recipe, len(rows))
    calibration = [collate(rows, [row], 0, "longest", 40) for row in chosen]
    session = OpenVino().open(apply_recipe(recipe, checkpoint.network, calibration), 1)
    live = session.with_exits(policy, exits).run(arrays(checkpoint, texts), policy.dials(np.arange(ROWS)))
    np.testing.assert_array_equal(found.exit_layer, live.exit_layer)
    assert found.labels == [tiny.task().label_names[i] for i in live.logits.argmax(-1)]


def test_dynamic_int8_is_served_as_measured(checkpoint: Checkpoint, tmp_path: Path, texts: list[str]):
    export(tmp_path / "served", checkpoint, tiny.task(), None, Int8Dynamic(), POLICY, EXITS)
    served = EarlyExitModel.load(tmp_path / "served")
    assert served.description["options"]["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == "32"
    session = OpenVino().open(apply_recipe(Int8Dynamic(), checkpoint.network), 1)
    live = session.with_exits(POLICY, EXITS).run(arrays(checkpoint, texts), POLICY.dials(np.arange(ROWS)))
    np.testing.assert_array_equal(served.predict(texts).exit_layer, live.exit_layer)


def test_dynamic_int8_on_onnxruntime_answers_rows_alone(checkpoint: Checkpoint, tmp_path: Path, texts: list[str]):
    export(tmp_path / "served", checkpoint, tiny.task(), None, Int8Dynamic(), POLICY, EXITS, engine=OnnxRuntime())
    served = EarlyExitModel.load(tmp_path / "served", threads=1)
    program = OnnxRuntime().open(apply_recipe(Int8Dynamic(), checkpoint.network), 1).with_exits(POLICY, EXITS)
    inputs = arrays(checkpoint, texts)
    lengths = inputs["attention_mask"].sum(axis=1)
    alone = [{name: array[i : i + 1, : lengths[i]] for name, array in inputs.items()} for i in range(ROWS)]
    live = [program.run(row, POLICY.dials(np.arange(1))) for row in alone]
    np.testing.assert_array_equal(served.predict(texts).exit_layer, np.concatenate([o.exit_layer for o in live]))
    with pytest.raises(ArtefactError, match=f"run rows alone, not {ROWS}"):
        served.run(*inputs.values())


def test_texts_go_into_openvino_graphs_alone(checkpoint: Checkpoint, tmp_path: Path):
    data = tiny.task(dev_rows=ROWS).load(None, seed=0)
    with pytest.raises(UserError, match="--text writes OpenVINO operations, which engine onnxruntime has none of"):
        export(tmp_path / "x", checkpoint, tiny.task(), data, Float32(), POLICY, EXITS, True, OnnxRuntime())


def test_a_recipe_for_whole_networks_is_not_exported(checkpoint: Checkpoint, tmp_path: Path):
    with pytest.raises(UserError, match="recipe int8_native quantizes whole networks, without exits"):
        export(tmp_path / "served", checkpoint, tiny.task(), None, Int8Native(), POLICY, EXITS)
    assert not (tmp_path / "served").exists()


@pytest.mark.parametrize("engine", SERVING)
def test_it_serves_without_torch(engine: str, folders: dict[str, Path], texts: list[str], tmp_path: Path):
    """A process of its own, outside the repository, from the copy inside the folder, with its engine alone."""
    served = shutil.copytree(folders[engine], tmp_path / "elsewhere")
    other = next(name for name in SERVING if name != engine)
    code = (
        "import json, sys\n"
        "from artefact import EarlyExitModel\n"
        "found = EarlyExitModel.load('.').predict(json.loads(sys.argv[1]))\n"
        "heavy = {'torch', 'transformers', 'models', 'quant', 'benchmarks', sys.argv[2]} & set(sys.modules)\n"
        "print(json.dumps([found.labels, found.exit_layer.tolist(), sorted(heavy)]))\n"
    )
    command = [sys.executable, "-c", code, json.dumps(texts), other]
    done = subprocess.run(command, capture_output=True, text=True, cwd=served, timeout=120, check=True)
    here = EarlyExitModel.load(folders[engine]).predict(texts)
    assert json.loads(done.stdout) == [here.labels, here.exit_layer.tolist(), []]


PLAIN_SCRIPT = """
import sys, numpy as np, openvino as ov
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file("tokenizer.json")
model = ov.Core().compile_model("model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
rows = tokenizer.encode_batch(sys.argv[1:])
width = max(len(row.ids) for row in rows)
ids, mask, types = np.zeros((3, len(rows), width), np.int64)
for i, row in enumerate(rows):
    ids[i, : len(row.ids)], mask[i, : len(row.ids)], types[i, : len(row.ids)] = row.ids, 1, row.type_ids
answer = model({"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "threshold": np.float32(0.5)})
print(answer["label"].tolist(), answer["exit_layer"].tolist())
"""


def test_a_plain_openvino_script_does_the_same(folder: Path, texts: list[str]):
    assert len(PLAIN_SCRIPT.strip().splitlines()) <= 15
    command = [sys.executable, "-c", PLAIN_SCRIPT, *texts]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120, check=True)
    found = EarlyExitModel.load(folder).predict(texts)
    names = tiny.task().label_names
    assert done.stdout.strip() == f"{[names.index(x) for x in found.labels or []]} {found.exit_layer.tolist()}"


@pytest.mark.parametrize("engine", SERVING)
def test_many_requests_at_once(engine: str, folders: dict[str, Path], texts: list[str]):
    model = EarlyExitModel.load(folders[engine])
    alone = [model.predict([text]) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: model.predict([texts[i % ROWS]]), range(10 * ROWS)))
    for i, found in enumerate(together):
        assert found.labels == alone[i % ROWS].labels
        assert found.exit_layer.tolist() == alone[i % ROWS].exit_layer.tolist()


@pytest.mark.parametrize("name", [artefact.GRAPH, artefact.WEIGHTS, artefact.TOKENIZER, artefact.LOADER])
def test_a_flipped_byte_is_refused(name: str, folder: Path, tmp_path: Path):
    altered = shutil.copytree(folder, tmp_path / "altered")
    content = bytearray((altered / name).read_bytes())
    content[len(content) // 2] ^= 1
    (altered / name).write_bytes(content)
    with pytest.raises(ArtefactError, match=f"{name}' is not the file that was exported"):
        EarlyExitModel.load(altered)


def test_folders_that_are_no_artefacts(folder: Path, tmp_path: Path):
    with pytest.raises(ArtefactError, match="is not an exported model"):
        EarlyExitModel.load(tmp_path)
    partial = shutil.copytree(folder, tmp_path / "partial")
    (partial / artefact.WEIGHTS).unlink()
    with pytest.raises(ArtefactError, match=r"model\.bin' is missing"):
        EarlyExitModel.load(partial)
    other = shutil.copytree(folder, tmp_path / "other")
    described = json.loads((other / artefact.DESCRIPTION).read_text())
    (other / artefact.DESCRIPTION).write_text(json.dumps(described | {"schema": "exitbench/artefact/9"}))
    with pytest.raises(ArtefactError, match=r"schema 'exitbench/artefact/9'.*export it again"):
        EarlyExitModel.load(other)


def test_calls_that_make_no_sense(folder: Path):
    model = EarlyExitModel.load(folder)
    for texts in ([], "one text"):
        with pytest.raises(ArtefactError, match="texts must be"):
            model.predict(texts)
    with pytest.raises(ArtefactError, match=r"unknown dial 'patience'; policy entropy has \['threshold'\]"):
        model.predict(["a"], patience=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exits": [2, 1]}, r"exits \[2, 1\] must ascend within 1..4"),
        ({"exits": [5]}, r"exits \[5\] must ascend"),
        ({"policy": Imposed(exit_layers=[1])}, "policy imposed is for timing only"),
        ({"policy": Fixed(layer=3), "exits": [2, 4]}, r"policy fixed: layer 3 is none of the exits \[2, 4\]"),
    ],
)
def test_exports_that_make_no_sense(changes: dict[str, Any], message: str, checkpoint: Checkpoint, tmp_path: Path):
    given: dict[str, Any] = {"policy": POLICY, "exits": EXITS} | changes
    with pytest.raises(UserError, match=message):
        export(tmp_path / "x", checkpoint, tiny.task(), None, Float32(), given["policy"], given["exits"])
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("there", [True, False])
def test_an_export_that_is_cut_short_leaves_what_was_there(
    there: bool, checkpoint: Checkpoint, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    served = tmp_path / "served"
    if there:
        shutil.copytree(folder, served)
    given = served, checkpoint, tiny.task(), None, Float32(), POLICY, EXITS
    with monkeypatch.context() as full:
        full.setattr("quant.artefact.file_hash", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export(*given)
    assert served.exists() == there
    if there:
        EarlyExitModel.load(served)
    export(*given)
    assert EarlyExitModel.load(served).predict(["a good film"]).exit_layer[0] in EXITS
    assert [path.name for path in tmp_path.iterdir()] == ["served"]


def test_a_folder_in_use_is_left_alone(checkpoint: Checkpoint, tmp_path: Path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not an export"):
        export(tmp_path, checkpoint, tiny.task(), None, Float32(), POLICY, EXITS)
    assert (tmp_path / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--policy", "{kind: entropy}"], "--policy: entropy.threshold: is required"),
        (["--policy", "{kind: entropi, threshold: 1}"], "unknown kind 'entropi'"),
        (["--policy", "{"], "--policy: not YAML"),
        (
            ["--policy", "{kind: entropy, threshold: 0.1}", "--recipe", "int4"],
            "--recipe: top level: unknown kind 'int4'",
        ),
        (["--policy", "{kind: entropy, threshold: 0.1}"], "must hold config.json"),
    ],
)
def test_command_line_mistakes(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["export", str(tmp_path / "none"), str(tmp_path / "served"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
