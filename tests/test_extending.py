"""What `docs/extending.md` says, done: a policy, a method, a recipe and a task are added, tested, run and reported."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import yaml
from scipy.special import softmax

from benchmarks.recordings import read_recordings
from benchmarks.records import read_records
from models.synthetic import write_text
from tests.pages import ROOT, code_blocks
from tests.suites import TINY
from tests.test_checkpoints import backbone_folder

# Both run in the copy of the repository: the commands of a user, with workers on threads.
COMMANDS = """
import sys
import benchmarks.runner
from benchmarks.__main__ import main
from reports.__main__ import main as report
from tests.workers import ThreadWorker

suite, folder = sys.argv[1:]
benchmarks.runner.Worker = ThreadWorker
assert main(["list"]) == 0
given = ["--dataset_location", folder, "--checkpoints", folder + "/checkpoints", "--output", folder + "/output"]
assert main(["run", suite, *given]) == 0
assert report(["render", folder + "/output"]) == 0
"""
METHOD_AND_RECIPE = """
import torch
from models.methods import Worst
from quant.recipes import Rounded, apply_recipe
from tests import tiny

logits = torch.tensor([[[0.0, 0.0]], [[0.0, 3.0]], [[1.0, 0.0]]], dtype=torch.float64)
loss = Worst().loss(logits, torch.tensor([0]))
assert abs(loss - torch.log(1 + torch.exp(torch.tensor(3.0)))) < 1e-5, loss

network = tiny.network("bert")
before = [parameter.clone() for parameter in network.parameters()]
for bits in (2, 4):
    segments = apply_recipe(Rounded(bits=bits), network)
    weight = segments.layers[0].layer.attention.self.query.weight
    scaled = weight / weight.abs().amax(dim=1, keepdim=True) * (2 ** (bits - 1) - 1)
    assert torch.allclose(scaled, scaled.round(), atol=1e-4)
    assert len(scaled.round().unique()) == 2**bits - 1
assert all(torch.equal(*pair) for pair in zip(before, network.parameters()))
"""


def edit(path: Path, old: str, new: str) -> None:
    """Replace what stands once in a file."""
    text = path.read_text()
    assert text.count(old) == 1, (path, old)
    path.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository after what the page says was done."""
    copy = tmp_path_factory.mktemp("repository") / "copy"
    for folder in ("models", "quant", "benchmarks", "reports", "yaml_configs", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    policy, test, method, recipe, case, task = code_blocks("docs/extending.md", "python")
    models, recipes = copy / "models", copy / "quant" / "recipes.py"
    for path, union, code, last, name in (
        (models / "policies.py", "Policy", policy, "Imposed", "Votes"),
        (models / "methods.py", "Method", method, "RomeBert", "Worst"),
        (recipes, "Recipe", recipe, "Int8Dynamic", "Rounded"),
        (models / "tasks.py", "Task", "", "TableTask", "JsonLinesTask"),
    ):
        edit(path, f"\n{union} = ", f"\n\n{code}\n\n{union} = ")
        edit(path, f" | {last}, Field(", f" | {last} | {name}, Field(")
    (copy / "tests" / "test_votes.py").write_text(test)
    edit(recipes, "import logging\n", "import logging\nfrom copy import deepcopy\n")
    edit(recipes, "        case Int8Dynamic():\n", f"{case}        case Int8Dynamic():\n")
    (models / "jsonl.py").write_text(task)
    glue = "from models.glue import GlueTask\n"
    edit(models / "tasks.py", glue, f"{glue}from models.jsonl import JsonLinesTask\n")
    return copy


def python(copy: Path, *arguments: str) -> str:
    """What a process of its own prints."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=copy, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_policy_passes_the_test_of_the_page(copy: Path):
    assert "2 passed" in python(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_votes.py")


def test_the_method_and_the_recipe_do_what_they_say(copy: Path):
    python(copy, "-c", METHOD_AND_RECIPE)


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pre-trained backbone, data as JSON lines, and a suite with all four new cases."""
    folder, random = tmp_path_factory.mktemp("user"), Random(0)
    backbone_folder(folder / "backbone", "bert")
    for split, rows in (("train", 96), ("dev", 40)):
        labels = [random.randrange(2) for _ in range(rows)]
        lines = [{"text": write_text(0, label, 26, random), "label": ["bad", "good"][label]} for label in labels]
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (checkpoint,) = TINY["checkpoints"]
    backbone = {"kind": "pretrained", "name": str(folder / "backbone"), "num_layers": 2}
    changes = {
        "tasks": [{"kind": "jsonl", "name": "films", "labels": ["bad", "good"]}],
        "checkpoints": [checkpoint | {"method": "worst", "backbone": backbone}],
        "recipes": ["float32", {"kind": "rounded", "bits": [2, 8]}],
        "policies": ["full_depth", {"kind": "votes", "enough": [0.3, 0.59]}],
        "timing": {"rows": 8, "repeats": 2, "block_rows": 8},
    }
    (folder / "suite.yaml").write_text(yaml.safe_dump(TINY | changes))
    return folder


def test_all_are_listed_run_and_reported(copy: Path, user: Path):
    printed = python(copy, "-c", COMMANDS, str(user / "suite.yaml"), str(user))
    for kind, says in (("votes", "Leave when"), ("worst", "One joint"), ("rounded", "Linear"), ("jsonl", "A user's")):
        assert f"  {kind:<12} {says}" in printed
    records = read_records(user / "output")
    assert {record.checkpoint.method for record in records} == {"worst"}
    assert {record.task for record in records} == {"films"}
    assert {record.case.split("/")[2] for record in records} == {"float32", "rounded-2", "rounded-8"}
    with_exits = {(record.recipe["kind"], record.case.split("/")[5]): record for record in records if record.with_exits}
    assert {policy for _, policy in with_exits} == {"fixed-last", "votes-0.3", "votes-0.59"}
    for record in records:
        assert (record.status, record.error) == ("ok", None)
        assert record.parity is not None
        assert record.parity.differing == record.parity.below_epsilon
    # One exit of two classes is worth more than 0.3; whether more than 0.59 depends on the row.
    assert with_exits["float32", "votes-0.3"].exit_counts["dev"] == [40, 0]
    record = with_exits["float32", "votes-0.59"]
    first = read_recordings(user / "output", [record])[record.recording].logits["dev"][0]
    early = int((softmax(first, axis=-1).max(axis=-1) > 0.59).sum())
    assert record.exit_counts["dev"] == [early, 40 - early]
    with (user / "output" / "report" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["case"] for row in rows} == {record.case for record in records}
    assert {row["task"] for row in rows} == {"films"}
    assert {row["method"] for row in rows} == {"worst"}
    assert {row["recipe"] for row in rows} == {"float32", "rounded(bits=2)", "rounded(bits=8)"}
    assert {row["policy"] for row in rows if row["role"] == "early exit"} == {"votes 0.3", "votes 0.59"}


def test_lines_that_are_no_rows_are_told_in_one(copy: Path, user: Path):
    broken = user / "broken"
    broken.mkdir()
    shutil.copy(user / "dev.jsonl", broken)
    (broken / "train.jsonl").write_text('{"text": "fine", "label": "better"}\n')
    command = [sys.executable, "-m", "benchmarks", "run", str(user / "suite.yaml"), "--dataset_location", str(broken)]
    command += ["--output", str(broken / "output")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=copy, timeout=200, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "train.jsonl: each line must be a text and one of ['bad', 'good'] (ValueError" in done.stderr
