"""The doors: their parameters, the set-up they share, and the lock.

Nothing here installs anything: the set-up runs with a stand-in for python3.11 that only notes what it is asked.
"""

import os
import re
import signal
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = ["mode", "config", "topology", "dataset_location", "checkpoints", "output", "only", "ray", "smoke", "dry-run"]
OPTIONS += ["input_model", "output_model", "int8", "batch_size", "iters", "help"]
SCRIPTS = ["setup_env.sh", "run_benchmark.sh", "run_tests.sh", ".ci/run"]

# Notes each `pip install` in $PIP_CALLS and ends it as $PIP_ENDS says, by itself or as if killed; repeats all other
# modules it is asked to run, with their arguments, one a line.
FAKE_PYTHON = """#!/usr/bin/env bash
case "$*" in
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip install --help") echo "--group" ;;
    "-m pip install "*)
        echo "$PPID" >"$PIP_CALLS.parent"
        echo "$*" >>"$PIP_CALLS"
        echo "ERROR: from pip"
        sleep "${PIP_TAKES:-0}"
        exit "${PIP_ENDS:-0}"
        ;;
    "-m "*) printf '%s\\n' "${@:2}" ;;
esac
"""


def run(*command: str | Path, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_parses(script: str):
    checked = run("bash", "-n", ROOT / script)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script != "setup_env.sh"])
def test_script_is_executable(script: str):
    assert os.access(ROOT / script, os.X_OK)


def bare_clone(folder: Path) -> Path:
    """A folder with the doors and what they install from, and nothing that they run."""
    for name in ["setup_env.sh", "run_benchmark.sh", "run_tests.sh", "pyproject.toml", "requirements.lock"]:
        (folder / name).write_bytes((ROOT / name).read_bytes())
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    return bare_clone(tmp_path)


@pytest.mark.parametrize("given", [["--tuned=bert"], ["--tuned", "bert"], ["suite.yaml"], ["--smoke=yes"]])
def test_unknown_parameter(clone: Path, given: list[str]):
    ended = run(clone / "run_benchmark.sh", *given)
    unknown = "yes" if given == ["--smoke=yes"] else given[0]
    assert (ended.returncode, ended.stderr) == (1, f"Error: No such parameter: {unknown}\n")


@pytest.mark.parametrize("given", [["--config"], ["--config="], ["--output", ""]])
def test_missing_value(clone: Path, given: list[str]):
    ended = run(clone / "run_benchmark.sh", *given)
    assert (ended.returncode, ended.stderr) == (1, f"Error: {given[0].rstrip('=')} needs a value\n")


def test_missing_suite_is_told_before_the_set_up(clone: Path):
    ended = run(clone / "run_benchmark.sh", "--config", "nowhere.yaml")
    assert ended.returncode == 1
    assert "No such suite: nowhere.yaml" in ended.stderr
    assert not (clone / ".venv").exists()


def test_help_names_every_parameter_without_a_set_up(clone: Path):
    ended = run(clone / "run_benchmark.sh", "--help")
    assert ended.returncode == 0
    named = set(re.findall(r"^  (--\w[\w-]*)", ended.stdout, re.MULTILINE))
    assert named == {f"--{name}" for name in OPTIONS}
    assert not (clone / ".venv").exists()


class SetUp:
    """`setup_env` in a clone, with the stand-in for Python."""

    def __init__(self, clone: Path):
        self.clone = clone
        self.calls = clone / "pip_calls"
        python = clone / "bin" / "python3.11"
        python.parent.mkdir()
        python.write_text(FAKE_PYTHON)
        python.chmod(0o755)
        self.environment = os.environ | {"PATH": f"{python.parent}:{os.environ['PATH']}", "PIP_CALLS": str(self.calls)}

    def start(self, *groups: str, **settings: str) -> subprocess.Popen[str]:
        script = f'set -euo pipefail; ROOT="{self.clone}"; source "$ROOT/setup_env.sh"; setup_env {" ".join(groups)}'
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(["bash", "-c", script], env=self.environment | settings, text=True, **pipes)

    def __call__(self, *groups: str, **settings: str) -> tuple[int, str]:
        with self.start(*groups, **settings) as door:
            stdout, stderr = door.communicate(timeout=60)
            return door.returncode, stdout + stderr

    def installs(self) -> list[list[str]]:
        """The groups of each `pip install` so far."""
        calls = self.calls.read_text().splitlines() if self.calls.exists() else []
        assert all("--constraint requirements.lock" in call for call in calls)
        return [re.findall(r"--group (\w+)", call) for call in calls]


@pytest.fixture
def set_up(clone: Path) -> SetUp:
    return SetUp(clone)


def test_set_up_installs_only_what_is_missing(set_up: SetUp):
    assert set_up("run", "minilm")[0] == 0
    assert set_up("run", "minilm") == (0, "")
    assert set_up("run", "minilm", "dev")[0] == 0
    assert set_up("run", "minilm") == (0, "")
    assert set_up.installs() == [["run", "minilm"], ["dev"]]


@pytest.mark.parametrize("name", ["pyproject.toml", "requirements.lock"])
def test_set_up_follows_changed_pins(set_up: SetUp, name: str):
    set_up("run")
    with (set_up.clone / name).open("a") as file:
        file.write("# changed\n")
    assert set_up("run")[0] == 0
    assert set_up.installs() == [["run"], ["run"]]


def test_failed_install_is_told_and_keeps_what_stood(set_up: SetUp):
    set_up("run")
    kept = set_up.clone / ".venv" / "kept"
    kept.touch()
    code, output = set_up("run", "dev", PIP_ENDS="1")
    assert code == 1
    assert "ERROR: from pip" in output
    assert "Error: pip could not install dev" in output
    assert set_up("run") == (0, "")
    assert set_up("run", "dev")[0] == 0
    assert kept.exists()


def test_killed_install_begins_anew(set_up: SetUp):
    set_up("run")
    half = set_up.clone / ".venv" / "half-written"
    half.touch()
    assert set_up("run", "dev", PIP_ENDS="137")[0] == 1
    assert set_up("run", "dev")[0] == 0
    assert not half.exists()
    assert set_up.installs()[-1] == ["run", "dev"]


def test_interrupted_install_begins_anew(set_up: SetUp):
    with set_up.start("run", PIP_TAKES="1") as door:
        assert door.stdout is not None
        door.stdout.readline()  # "Installing ..."
        while not set_up.calls.exists():
            assert door.poll() is None
        # To the set-up's shell alone: like pip, the stand-in ends by itself, so its exit code tells nothing.
        os.kill(int(set_up.calls.with_suffix(".parent").read_text()), signal.SIGTERM)
        assert door.wait(timeout=60) == 130
    assert not (set_up.clone / ".venv/exitbench/sound").exists()
    assert set_up("run")[0] == 0


def test_two_set_ups_at_once_install_once(set_up: SetUp):
    with set_up.start("run", PIP_TAKES="1") as first:
        while not set_up.calls.exists():
            assert first.poll() is None
        code, output = set_up("run")
        assert (code, output) == (0, "Another set-up is at work in this folder: waiting for it to end.\n")
        assert first.wait(timeout=60) == 0
    assert set_up.installs() == [["run"]]


def test_foreign_venv_is_left_alone(set_up: SetUp):
    own = set_up.clone / ".venv" / "own"
    own.parent.mkdir()
    own.touch()
    code, output = set_up("run")
    assert code == 1
    assert ".venv was not made by this script" in output
    assert own.exists()


def test_wrong_python_is_told(set_up: SetUp):
    for name in ["python3.11", "python3", "python"]:
        python = set_up.clone / "bin" / name
        python.write_text('#!/usr/bin/env bash\n[ "$1" = --version ] && echo "Python 3.12.1"\n')
        python.chmod(0o755)
    code, output = set_up("run")
    assert code == 1
    assert "needs Python 3.11 on the PATH; there is: Python 3.12.1, Python 3.12.1, Python 3.12.1." in output


def modules_run(set_up: SetUp, script: str, *given: str) -> list[str]:
    """What the script runs after its set-up: module names and arguments, from a folder outside the clone."""
    elsewhere = set_up.clone / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    (elsewhere / "own.yaml").touch()
    ended = run(set_up.clone / script, *given, cwd=elsewhere, env=set_up.environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    return [line for line in ended.stdout.splitlines() if not line.startswith("Install")]


def test_run_benchmark_runs_the_default_suite(set_up: SetUp):
    suites = set_up.clone / "yaml_configs" / "suites"
    suites.mkdir(parents=True)
    (suites / "default.yaml").touch()
    measured = ["benchmarks", "run", "yaml_configs/suites/default.yaml", "--output", "runs/default"]
    shown = ["reports", "table", "runs/default", "reports", "render", "runs/default"]
    assert modules_run(set_up, "run_benchmark.sh") == measured + shown
    assert set_up.installs() == [["run", "minilm"]]


def test_run_benchmark_passes_its_parameters_on(set_up: SetUp):
    given = ["--config=own.yaml", "--dataset_location", "../glue", "--only", "sst2", "--output=/o", "--smoke"]
    here = set_up.clone / "elsewhere"
    passed = ["--dataset_location", f"{here}/../glue", "--only", "sst2", "--smoke"]
    measured = ["benchmarks", "run", f"{here}/own.yaml", "--output", "/o", *passed]
    shown = ["reports", "table", "/o", "reports", "render", "/o"]
    assert modules_run(set_up, "run_benchmark.sh", *given) == measured + shown


def test_run_benchmark_installs_ray_where_it_is_asked_for(set_up: SetUp):
    assert modules_run(set_up, "run_benchmark.sh", "--config=own.yaml", "--ray=local", "--dry-run")[-2:] == [
        "local",
        "--dry-run",
    ]
    assert set_up.installs() == [["run", "minilm", "ray"]]


def test_run_benchmark_tunes(set_up: SetUp):
    given = ["--mode=tune", "--config=own.yaml", "--output", "o", "--checkpoints=c", "--smoke"]
    here = set_up.clone / "elsewhere"
    tuned = ["benchmarks", "tune", f"{here}/own.yaml", "--output", f"{here}/o", "--checkpoints", f"{here}/c", "--smoke"]
    assert modules_run(set_up, "run_benchmark.sh", *given) == tuned


def test_topology_names_a_file_that_comes_with_it(set_up: SetUp):
    (set_up.clone / "yaml_configs" / "suites").mkdir(parents=True)
    (set_up.clone / "yaml_configs" / "suites" / "sst2.yaml").touch()
    dry_run = ["benchmarks", "run", "yaml_configs/suites/sst2.yaml", "--dry-run"]
    assert modules_run(set_up, "run_benchmark.sh", "--topology=sst2", "--dry-run") == dry_run


def test_run_benchmark_tunes_as_lpot_does(set_up: SetUp):
    (set_up.clone / "yaml_configs" / "tuning").mkdir(parents=True)
    (set_up.clone / "yaml_configs" / "tuning" / "sst2.yaml").touch()
    given = ["--mode=tune", "--topology=sst2", "--dataset_location=/glue", "--input_model=.", "--output_model=saved"]
    here = set_up.clone / "elsewhere"
    passed = ["--dataset_location", "/glue", "--input_model", f"{here}/.", "--output_model", f"{here}/saved"]
    tuned = ["benchmarks", "tune", "yaml_configs/tuning/sst2.yaml", *passed]
    assert modules_run(set_up, "run_benchmark.sh", *given) == tuned


@pytest.mark.parametrize("mode", ["accuracy", "benchmark"])
def test_run_benchmark_measures_one_model_as_lpot_does(set_up: SetUp, mode: str):
    """The line of LPOT's examples, parameter by parameter."""
    given = ["--topology=sst2_minilm", "--dataset_location=../glue", "--input_model=.", f"--mode={mode}"]
    given += ["--batch_size=8", "--iters=20", "--int8=true", "--config=saved_results"]
    here = set_up.clone / "elsewhere"
    passed = ["--dataset_location", f"{here}/../glue", "--input_model", f"{here}/."]
    passed += ["--batch_size", "8", "--iters", "20"]
    passed += ["--int8", "true", "--config", f"{here}/saved_results", "--topology", "sst2_minilm"]
    assert modules_run(set_up, "run_benchmark.sh", *given) == ["benchmarks", mode, *passed]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--mode=tunes"], "No such mode: tunes (run, tune, accuracy or benchmark)"),
        (["--mode", "tune", "--dry-run"], "--dry-run does not go with --mode tune"),
        (["--only", "x", "--mode", "tune"], "--only does not go with --mode tune"),
        (["--mode", "tune", "--ray", "local"], "--ray does not go with --mode tune"),
        (["--mode", "tune", "--iters=3"], "--iters does not go with --mode tune"),
        (["--input_model=."], "--input_model does not go with --mode run"),
        (["--mode=accuracy", "--input_model=.", "--smoke"], "--smoke does not go with --mode accuracy"),
        (["--mode=benchmark", "--input_model=.", "--output=o"], "--output does not go with --mode benchmark"),
        (["--mode", "tune"], "No such suite: yaml_configs/tuning/default.yaml"),
        (["--mode", "tune", "--topology=bert_base_MRPC"], "No such suite: yaml_configs/tuning/bert_base_MRPC.yaml"),
        (["--topology=bert_base_MRPC", "--config=own.yaml"], "give --config or --topology, not both"),
        (["--mode=tune", "--input_model=nothing"], "/nothing"),
        (["--mode=accuracy", "--input_model=nothing"], "No such model: "),
        (["--mode=accuracy"], "--mode accuracy needs --input_model"),
        (["--mode=benchmark", "--int8=true"], "--mode benchmark needs --input_model"),
    ],
)
def test_modes_are_told_before_the_set_up(clone: Path, given: list[str], said: str):
    ended = run(clone / "run_benchmark.sh", *given, cwd=clone)
    assert ended.returncode == 1
    assert said in ended.stderr
    assert not (clone / ".venv").exists()


def test_a_dry_run_reports_nothing(set_up: SetUp):
    assert modules_run(set_up, "run_benchmark.sh", "--config=own.yaml", "--dry-run")[-1] == "--dry-run"


def test_run_tests_checks_everything(set_up: SetUp):
    ran = modules_run(set_up, "run_tests.sh")
    assert [line for line in ran if line in {"ruff", "basedpyright", "pytest"}] == [
        "ruff",
        "ruff",
        "basedpyright",
        "pytest",
    ]
    assert set_up.installs() == [["run", "minilm", "ray", "dev"]]


def test_run_tests_with_arguments_is_pytest(set_up: SetUp):
    assert modules_run(set_up, "run_tests.sh", "tests/test_x.py", "-x") == ["pytest", "tests/test_x.py", "-x"]


def locked_versions() -> dict[str, str]:
    """Package (canonical name) to version; a line that is not a plain pin fails."""
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    pins = [re.fullmatch(r"([\w.-]+)==([\w.!]+)", line) for line in lines]
    assert all(pins), [line for line, pin in zip(lines, pins, strict=True) if pin is None]
    return {canonicalize_name(pin[1]): pin[2] for pin in pins if pin}


def test_lock_pins_every_dependency_within_its_range():
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    locked = locked_versions()
    wanted = [Requirement(entry) for group in groups.values() for entry in group if isinstance(entry, str)]
    assert {canonicalize_name(want.name) for want in wanted} <= set(locked)
    assert [str(want) for want in wanted if locked[canonicalize_name(want.name)] not in want.specifier] == []


def test_report_group_is_torch_free():
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    names = {Requirement(entry).name for entry in groups["report"]}
    assert not names & {"torch", "torchao", "transformers", "openvino"}
