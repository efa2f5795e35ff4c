"""What the pages say: links lead somewhere, files parse, commands and examples run.

`tests/test_extending.py` does what extending.md says, `tests/test_lpot.py` runs LPOT's modes.
"""

import copy
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest
import yaml

import benchmarks.__main__ as benchmarks
import benchmarks.runner as runner
import quant.__main__ as quant
import reports.__main__ as reports
from benchmarks.suite import Suite
from models.checkpoints import load_checkpoint
from models.policies import Entropy
from quant.artefact import EarlyExitModel
from quant.export import export
from quant.recipes import Float32
from reports.gate import Gate
from tests import suites, tiny
from tests.measured import measure
from tests.pages import PAGES, ROOT, code_blocks, name_of
from tests.test_doors import SetUp, bare_clone, modules_run
from tests.workers import ThreadWorker

GUIDES = ["concepts", "tuning", "gates", "extending", "serving", "measurement", "migration", "differences", "results"]
# What a reader makes, following a page.
OWN = {"yaml_configs/gates/mine.yaml", "yaml_configs/suites/mine.yaml", "tests/test_votes.py", "models/jsonl.py"}
PYTHON = [".venv/bin/python", "-m"]
MODULES: dict[str, Any] = {"benchmarks": benchmarks, "quant": quant, "reports": reports}
SCHEMAS: dict[str, Any] = {"exitbench/suite/1": Suite, "exitbench/gate/1": Gate}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path):
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", prose)]
    local = [link for link in links if link and not link.startswith(("https://", "http://"))]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page: Path):
    named = re.findall(r"\b(?:models|quant|benchmarks|reports|tests|docs|yaml_configs)/[\w/]+\.\w+", page.read_text())
    assert [name for name in sorted({*named} - OWN) if not (ROOT / name).exists()] == []


def test_readme_links_every_guide():
    links = set(re.findall(r"\]\((docs/[^)]+)\)", (ROOT / "README.md").read_text()))
    assert {f"docs/{name}.md" for name in GUIDES} <= links
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} == set(GUIDES)


def test_files_of_the_pages_parse():
    found = [yaml.safe_load(text) for page in PAGES for text in code_blocks(name_of(page), "yaml")]
    whole = [content for content in found if "schema" in content]
    assert sorted(content["name"] for content in whole) == ["deebert_mrpc", "mine", "mine", "pabee_mrpc"]
    for content in whole:
        SCHEMAS[content["schema"]].model_validate(content)


def commands(page: Path) -> list[list[str]]:
    """Every command of ours on a page, in blocks and in the text, without comments."""
    blocks = "".join(code_blocks(name_of(page), "bash")).replace("\\\n", "").splitlines()
    inline = re.findall(r"`((?:\./run_benchmark\.sh|\.venv/bin/python -m) [^`]+)`", page.read_text())
    found = [shlex.split(line, comments=True) for line in [*blocks, *inline]]
    return [words for words in found if words and (words[0] == "./run_benchmark.sh" or words[:2] == PYTHON)]


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> SetUp:
    """A clone in which Python only says what it is asked, and folders that the pages name."""
    clone = bare_clone(tmp_path_factory.mktemp("clone"))
    shutil.copytree(ROOT / "yaml_configs", clone / "yaml_configs")
    for folder in ("CHECKPOINT", "served"):
        (clone / "elsewhere" / folder).mkdir(parents=True)
    (clone / "elsewhere" / "SUITE.yaml").touch()
    return SetUp(clone)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_commands(page: Path, doors: SetUp):
    """Parsed as by the programs that they are for."""
    for words in commands(page):
        asked = words[2:]
        if words[0] == "./run_benchmark.sh":
            asked = modules_run(doors, "run_benchmark.sh", *words[1:])
            asked = asked[: asked.index("reports")] if "reports" in asked else asked
        if asked[0] in ("benchmarks", "quant"):
            MODULES[asked[0]].parser().parse_args(asked[1:])
        else:
            assert asked[0] == "pip" or words in commands(ROOT / "README.md"), words  # run below


def test_readme_from_a_suite_to_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its commands, in order. What the door takes runs in `tests/test_shipped_*.py`, depths in `tests/test_cli.py`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "Worker", ThreadWorker)
    shutil.copytree(ROOT / "yaml_configs", tmp_path / "yaml_configs")
    task = {"kind": "synthetic", "fit_rows": 24, "select_rows": 8, "tune_rows": 8, "dev_rows": 8}
    checkpoint = copy.deepcopy(suites.TINY["checkpoints"][0])
    checkpoint["backbone"]["num_layers"] = 3  # the export keeps three exits
    timing = {"rows": 8, "repeats": 2, "block_rows": 8}
    suite = str(suites.write(tmp_path, tasks=[task], checkpoints=[checkpoint], timing=timing))
    for name in ("old", "mine"):  # toy timings are no baseline
        measure(tmp_path / "runs" / name)
    run = []
    for words in commands(ROOT / "README.md"):
        if words[:2] != PYTHON or words[2] == "pip" or words[3] == "depths":
            continue
        checkpoint = next(map(str, Path("checkpoints").glob("synthetic-*")), "")
        stand_ins = {"SUITE.yaml": suite, "CHECKPOINT": checkpoint}
        assert MODULES[words[2]].main([stand_ins.get(word, word) for word in words[3:]]) == 0, words
        run.append(words[3])
    logging.disable(logging.NOTSET)
    expected = ["list", "run", "run", "train", "render", "sensitivity", "gate", "gate", "gate", "compare", "export"]
    assert run == expected
    assert EarlyExitModel.load("served").predict(["the plot was dull ."]).labels


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network, exported; at this threshold some rows leave early and some do not."""
    folder = tmp_path_factory.mktemp("served")
    tiny.checkpoint(folder / "checkpoint")
    data = tiny.task().load(None, seed=0)
    given = load_checkpoint(folder / "checkpoint"), tiny.task(), data, Float32(), Entropy(threshold=0.6), [1, 2, 3, 4]
    export(folder / "served", *given, text=True)
    return folder / "served"


@pytest.fixture
def with_loader(served: Path) -> dict[str, str]:
    """An environment in which `artefact` is the folder's own."""
    return os.environ | {"PYTHONPATH": str(served)}


@pytest.mark.parametrize("page", ["README.md", "docs/serving.md"])
def test_serving_examples_run(page: str, served: Path, with_loader: dict[str, str]):
    example, *_ = code_blocks(page, "python")
    command, where = [sys.executable, "-c", example], {"cwd": served.parent, "env": with_loader}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **where)
    assert (done.returncode, done.stderr) == (0, "")
    if page == "README.md":
        return
    *answers, dials = done.stdout.splitlines()
    names = "|".join(tiny.task().label_names)
    assert len(answers) == 2
    assert all(re.fullmatch(rf"(?:{names}) \([01]\.\d\d\), layer [1-4]: .*", line) for line in answers)
    assert re.fullmatch(r"threshold 0\.6 -> 0: layers \[\d, \d\] -> \[4, 4\]", dials)


def test_strings_go_into_the_graph(served: Path):
    _, example = code_blocks("docs/serving.md", "python")
    command = [sys.executable, "-c", example]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=served.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"\[[1-4]\]", done.stdout.strip())


@pytest.fixture
def server(served: Path, with_loader: dict[str, str]) -> Iterator[str]:
    """The address of `docs/serve.py`."""
    command = [sys.executable, str(ROOT / "docs" / "serve.py"), str(served), "--port", "0"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, env=with_loader, **pipes) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.kill()


def test_the_server_answers(served: Path, server: str):
    model = EarlyExitModel.load(served)
    texts, pair = ["a film to remember .", "two hours that nobody gives back ."], ("the plot", "was dull .")
    layers = []
    for given, dials in ((texts, {}), (texts, {"threshold": 0.0}), (texts, {"threshold": 9.0}), ([pair], {})):
        expected = model.predict(given, **dials)
        with urlopen(server, json.dumps({"texts": given} | ({"dials": dials} if dials else {})).encode()) as answer:
            found = json.load(answer)
        assert (found["labels"], found["exit_layer"]) == (expected.labels, expected.exit_layer.tolist())
        np.testing.assert_allclose(found["scores"], expected.scores, atol=1e-6)
        layers.append(found["exit_layer"])
    assert layers[1:3] == [[4, 4], [1, 1]]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("no json", "JSONDecodeError"),
        ("[]", "AttributeError"),
        ("{}", "KeyError('texts')"),
        ('{"texts": []}', "texts must be one or more strings in a list"),
        ('{"texts": ["a", 5]}', "TypeError"),
        ('{"texts": ["a"], "dials": {"patience": 1}}', "unknown dial 'patience'"),
        ('{"texts": ["a"], "dials": {"threshold": [1, 2]}}', "TypeError"),
    ],
)
def test_the_server_refuses(asked: str, said: str, server: str):
    with pytest.raises(HTTPError) as refused:
        urlopen(server, asked.encode())
    assert refused.value.code == 400
    error = json.load(refused.value)["error"]
    assert error.startswith('give {"texts": [...], "dials": {...}}: ')
    assert said in error
