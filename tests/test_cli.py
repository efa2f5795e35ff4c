"""The command line: what it shows, and how it says no. `tests/test_runner.py` has the runs that go through."""

import importlib.util
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.__main__ import main, parser
from benchmarks.records import append_record, read_records
from tests import suites, tiny
from tests.commands import Said
from tests.fake_runs import record

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ["run", "train", "tune", "accuracy", "benchmark", "depths", "list"]
FRESH = suites.TINY["checkpoints"][0]


@pytest.fixture(autouse=True)
def _as_a_user(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In the repository's root, without a network, and with the logging that other tests expect afterwards."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield
    logging.disable(logging.NOTSET)


def python(*arguments: str | Path) -> Said:
    """Run a command as a user does."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=120, cwd=ROOT, check=False
    )
    return Said(done.returncode, done.stdout, done.stderr)


# What is shown


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"python -m benchmarks {command}" in capsys.readouterr().out
    (commands,) = (action for action in parser()._actions if isinstance(action.choices, dict))
    assert isinstance(commands.choices, dict)
    for action in commands.choices[command]._actions:
        assert action.help, f"{action.dest} needs a word on it"


def test_help_teaches_and_loads_nothing_heavy():
    said = python("-X", "importtime", "-m", "benchmarks", "--help")
    assert said.code == 0
    for command in COMMANDS:
        assert f"python -m benchmarks {command}" in said.out
    assert "exit codes: 0" in said.out
    imported = {line.rsplit("|", 1)[-1].strip() for line in said.err.splitlines()}
    assert "models.config" in imported
    assert not imported & {"torch", "transformers", "openvino", "pandas"}


def test_list_shows_every_axis(call: Callable[..., Said]):
    said = call("list")
    assert said.code == 0
    shown: dict[str, list[str]] = {}
    for line in said.out.splitlines():
        if not line.startswith(" "):
            shown[line] = []
        else:
            shown[list(shown)[-1]].append(line)
    assert list(shown) == [
        *["suites", "tunings", "tasks", "methods", "policies", "recipes", "engines"],
        *["families", "backbones by short name"],
    ]
    kinds = {axis: " ".join(lines) for axis, lines in shown.items()}
    for axis, cases in {
        "tasks": "cola sst2 mrpc qqp stsb mnli qnli rte synthetic table",
        "methods": "pabee deebert",
        "policies": "fixed patience entropy confidence imposed",
        "recipes": "float32 bfloat16 int8_static",
        "engines": "eager inductor openvino",
        "families": "bert roberta albert",
        "backbones by short name": "minilm",
    }.items():
        for case in cases.split():
            assert re.search(rf"\b{case}\b", kinds[axis]), (axis, case)
    for kind, folder in (("suites", "suites"), ("tunings", "tuning")):
        for path in (ROOT / "yaml_configs" / folder).glob("*.yaml"):
            assert path.name in kinds[kind]


def test_dry_run_tells_and_starts_nothing(call: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("benchmarks.session.fine_tune", "benchmarks.session.load_checkpoint", "benchmarks.runner.Worker"):
        monkeypatch.setattr(name, _must_not_run)
    path = suites.write(tmp_path, policies=["full_depth", {"kind": "entropy", "threshold": [0.1, 0.2]}])
    output, checkpoints = tmp_path / "output", tmp_path / "checkpoints"
    command = ["run", path, "--dry-run", "--output", output, "--checkpoints", checkpoints]
    said = call(*command)
    *cases, total = said.out.splitlines()
    assert said.code == 0
    assert said.err == ""
    assert [case.split("/")[5] for case in cases] == ["fixed-last", "entropy-0.1", "entropy-0.2", "fixed-last"]
    assert re.fullmatch(r"4 runs, roughly \d+ minutes of measuring \(training apart\) and \d+ MB of disk", total)
    assert call(*command, "--only", "entropy").out.splitlines()[:-1] == cases[1:3]
    assert len(call(*command, "--smoke").out.splitlines()) == 3 + 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_pattern_that_leaves_nothing_out_is_told(call: Callable[..., Said], tmp_path: Path):
    said = call("run", suites.write(tmp_path, exclude=["*/entrpy-*"]), "--dry-run")
    assert said.code == 0
    assert re.fullmatch(r"exclude: '\*/entrpy-\*' is in no case of suite \w+; --dry-run prints them\n", said.err)


def _must_not_run(*_: Any, **__: Any) -> None:
    raise AssertionError("a dry run started something")


def test_train_makes_a_checkpoint_once(call: Callable[..., Said], tmp_path: Path):
    path = suites.write(tmp_path, checkpoints=[FRESH | {"train": FRESH["train"] | {"epochs": 1.0}}])
    command = ["train", path, "--checkpoints", tmp_path / "checkpoints"]
    said = call(*command)
    exits = [line for line in said.out.splitlines() if line.startswith("  exit ")]
    folder = Path(said.out.splitlines()[-1 - len(exits)])
    assert said.code == 0
    assert [line.split(":")[0].split() for line in exits] == [["exit", "1"], ["exit", "2"]]
    assert {"config.json", "model.safetensors", "training.json"} <= {file.name for file in folder.iterdir()}
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert call(*command).out.splitlines() == [str(folder), *exits]
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_depths_prints_a_table(call: Callable[..., Said]):
    options = [
        "--layers",
        "2",
        "--hidden",
        "64",
        "--length",
        "8",
        "--threads",
        "1",
        "--repeats",
        "2",
        "--recipe",
        "float32",
    ]
    said = call("depths", *options)
    assert (said.code, said.err) == (0, "")
    assert "bert 2 x 64, random weights, float32 on openvino" in " ".join(said.out.split())
    assert "one policy step" in said.out


def test_an_interrupted_run_says_how_to_go_on(
    call: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.session.fine_tune", interrupted)
    said = call("run", suites.write(tmp_path), "--output", tmp_path / "output")
    assert said == Said(130, "", "Interrupted: finished runs are kept; the same command resumes.\n")


# How it says no


class Bad(NamedTuple):
    """Unusable input: keys of the suite, files beside it (name: content), options, and what is said."""

    message: str
    changes: Mapping[str, Any] = MappingProxyType({})
    files: Mapping[str, str] = MappingProxyType({})
    options: tuple[str, ...] = ()


TABLE = {"kind": "table", "name": "mine", "train": "train.tsv", "dev": "dev.tsv", "text": ["text"], "label": "label"}
TABLE |= {"labels": ["no", "yes"], "metric": "accuracy"}
ROWS = "text\tlabel\n" + "".join(f"row {i}\t{('no', 'yes')[i % 2]}\n" for i in range(12))
GOOD_DEV = "text\tlabel\nanother\tno\n"
BAD = {
    "unknown key": Bad("top level: unknown key 'enginess'; allowed: .*; did you mean 'engines'", {"enginess": []}),
    "unknown value": Bad(r"recipes\.0: unknown kind 'float31'; .* did you mean 'float32'", {"recipes": ["float31"]}),
    "nested value": Bad(r"shapes\.0\.batch_size: input should be greater", {"shapes": [{"batch_size": 0}]}),
    "entropy on regression": Bad(
        "policy entropy needs class probabilities, task stsb is a regression; remove it, or set on_unsupported: skip",
        {"tasks": ["stsb"], "policies": [{"kind": "entropy", "threshold": 0.5}]},
    ),
    "layer beyond the last": Bad("layer 3 is beyond the network's 2", {"policies": [{"kind": "fixed", "layer": 3}]}),
    "fallback that matches nothing": Bad(
        "fallback: 'layer_3' matches nothing; there are layer_1 to layer_2 .*; did you mean 'layer_2'",
        {"recipes": [{"kind": "int8_static", "fallback": ["exit_*", "layer_3"]}]},
    ),
    "unknown backbone": Bad(
        "backbone 'no/such-backbone' is neither a readable local folder, a reachable hub model nor a known short name",
        {"checkpoints": [{"method": "pabee", "backbone": "no/such-backbone"}]},
    ),
    "unknown classifier": Bad(
        "'no-such-classifier' is neither a readable local folder",
        {"checkpoints": [{"method": "deebert", "classifier": "no-such-classifier"}]},
    ),
    "missing checkpoint": Bad("'nothing' has no readable config.json", {"checkpoints": [{"folder": "nothing"}]}),
    "missing data folder": Bad(
        "no train.tsv in {folder}/nothing/SST-2 or {folder}/nothing; give the GLUE folder",
        {"tasks": ["sst2"]},
        options=("--dataset_location", "{folder}/nothing"),
    ),
    "missing file": Bad("data file not found: {folder}/train.tsv", {"tasks": [TABLE]}),
    "missing column": Bad(
        r"{folder}/train.tsv must have a column 'label'; its columns are text, answer",
        {"tasks": [TABLE]},
        {"train.tsv": ROWS.replace("label", "answer"), "dev.tsv": GOOD_DEV},
    ),
    "label out of range": Bad(
        r"{folder}/dev.tsv, line 3: label must be one of no, yes, found 'maybe'; mend the row",
        {"tasks": [TABLE]},
        {"train.tsv": ROWS, "dev.tsv": GOOD_DEV + "a third\tmaybe\n"},
    ),
    "fresh backbone for other data": Bad(
        "is fresh: only the synthetic task brings its own vocabulary",
        {"tasks": [TABLE]},
        {"train.tsv": ROWS, "dev.tsv": GOOD_DEV},
    ),
    "only nothing": Bad("--only 'nothing' is in no case of suite tiny", options=("--only", "nothing")),
    "nothing left": Bad("suite tiny has no run left", {"exits": ["all"], "policies": [{"kind": "fixed", "layer": 1}]}),
}


@pytest.mark.parametrize("given", BAD.values(), ids=list(BAD))
def test_bad_input_is_one_line_and_code_2(call: Callable[..., Said], tmp_path: Path, given: Bad):
    for name, content in given.files.items():
        (tmp_path / name).write_text(content)
    options = [option.format(folder=tmp_path) for option in given.options] or ["--dataset_location", str(tmp_path)]
    said = run_beside_records(call, suites.write(tmp_path, **given.changes), tmp_path, *options)
    expected = given.message.replace("{folder}", re.escape(str(tmp_path)))
    assert re.search(expected, said.err), said.err


def run_beside_records(call: Callable[..., Said], suite: Path, folder: Path, *options: str) -> Said:
    """Run a suite that cannot run into an output that holds records; they stay, and one line says why."""
    written = [record("a"), record("b", status="error", error="some")]
    for one in written:
        append_record(folder / "output", one)
    common = ["--output", folder / "output", "--checkpoints", folder / "checkpoints"]
    said = call("run", suite, *common, *options)
    assert (said.code, said.out) == (2, "")
    assert re.fullmatch(r"Error: .*\n", said.err), said.err
    assert read_records(folder / "output") == written
    return said


def test_missing_suite(call: Callable[..., Said], tmp_path: Path):
    said = call("run", "yaml_configs/suites/defautl.yaml", "--output", tmp_path)
    assert said.code == 2
    assert re.fullmatch(r"Error: suite '.*defautl\.yaml' does not exist; did you mean .*default\.yaml'\?.*\n", said.err)


def _half(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _nan(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    next(iter(state.values())).view(-1)[0] = torch.nan
    save_file(state, folder / "model.safetensors")


def _other_task(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["task"] = {"kind": "rte"}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_half, "cannot be read, it is truncated or altered: .*; delete the folder and train again"),
        (_no_weights, "must hold config.json and model.safetensors; it does not: train it again"),
        (_nan, "holds weights that are NaN or infinite: train it again"),
        (_other_task, "was trained on task 'rte' with 2 labels; the suite measures 'synthetic' with 2"),
    ],
)
def test_damaged_checkpoints(call: Callable[..., Said], tmp_path: Path, damage: Callable[[Path], None], message: str):
    tiny.checkpoint(tmp_path / "trained")
    damage(tmp_path / "trained")
    suite = suites.write(tmp_path, checkpoints=[{"folder": str(tmp_path / "trained")}])
    said = run_beside_records(call, suite, tmp_path)
    assert re.search(rf"checkpoint '{tmp_path}/trained' {message}", said.err), said.err


@pytest.mark.parametrize("compiler", ["no-such-compiler", ""])
def test_no_compiler(call: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str):
    monkeypatch.setenv("CXX", compiler)
    said = run_beside_records(call, suites.write(tmp_path, engines=["inductor"]), tmp_path)
    assert f"engine inductor needs a C++ compiler, {compiler!r} is not found: install g++ or set CXX" in said.err
    assert not (tmp_path / "checkpoints").exists()  # said before hours of training


@pytest.mark.parametrize(
    ("engine", "package", "message"),
    [
        ("openvino", "openvino", "engine openvino is not installed: pip install openvino"),
        ("onnxruntime", "onnx", "engine onnxruntime needs onnx, which is not installed: pip install onnx"),
    ],
)
def test_engine_not_installed(
    call: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, package: str, message: str
):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == package else found(name))
    said = run_beside_records(call, suites.write(tmp_path, engines=[engine], exits=["none"]), tmp_path)
    assert message in said.err
    assert engine == "onnxruntime" or call("depths") == Said(2, "", said.err)


@pytest.mark.parametrize("output", ["file", "file/below"])
def test_output_that_cannot_be_written(call: Callable[..., Said], tmp_path: Path, output: str):
    (tmp_path / "file").write_text("")
    said = call(
        *["run", suites.write(tmp_path), "--output", tmp_path / output, "--checkpoints", tmp_path / "checkpoints"]
    )
    assert (said.code, said.out) == (2, "")
    assert re.fullmatch(rf"Error: (File exists|Not a directory): {tmp_path / output}\n", said.err)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hidden", "100"], "--hidden must be a multiple of 64 (found 100)"),
        (["--layers", "0"], "all counts at least 1"),
        (["--length", "8", "1000"], "--length must lie in 2..512, found [8, 1000]"),
    ],
)
def test_depths_out_of_range(call: Callable[..., Said], options: list[str], message: str):
    said = call("depths", *options)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert message in said.err


@pytest.mark.parametrize(
    "arguments", [[], ["rum"], ["run"], ["run", "x.yaml", "--oputput", "y"], ["depths", "--layers", "x"]]
)
def test_misspelt_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]


def test_a_real_process_says_no_in_one_line(tmp_path: Path):
    """Nothing that the libraries print while they are imported comes before or after it."""
    said = python("-m", "benchmarks", "run", suites.write(tmp_path, recipes=["float31"]), "--output", tmp_path)
    assert said.code == 2
    assert said.out == ""
    assert re.fullmatch(r"Error: .*recipes\.0: unknown kind 'float31'.*\n", said.err), said.err
