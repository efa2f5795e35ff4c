"""The house as `models <- quant <- benchmarks <- reports`, held together by what may import what."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.records import RECORDS
from reports.gate_baseline import init as gate_init
from tests.measured import measure

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ["models", "quant", "benchmarks", "reports"]
# What a package may import of the house; None is all of a package.
ALLOWED: dict[str, dict[str, set[str] | None]] = {
    "models": {"models": None},
    "quant": {"models": None, "quant": None},
    "benchmarks": {"models": None, "quant": None, "benchmarks": None},
    "reports": {
        "reports": None,
        "models": {
            "models.calibration",
            "models.command",
            "models.config",
            "models.cpu",
            "models.ops",
            "models.policies",
        },
        "benchmarks": {
            "benchmarks.floors",
            "benchmarks.recordings",
            "benchmarks.records",
            "benchmarks.statistics",
            "benchmarks.validity",
        },
    },
}
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
HEAVY = {"torch", "transformers", "openvino", "neural_compressor", "torchao"}
LONGEST_FILE = 450
# Commands whose output is what they are for.
CONSOLE = {f"{package}/__main__.py" for package in PACKAGES} | {"models/command.py"}


def python(code: str) -> str:
    """What a process of its own prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports, wherever in it: `from a import b` is `a`, and `a.b` where that is a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: imports are absolute"
            assert node.module is not None
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [module for module in below if (ROOT / f"{module.replace('.', '/')}.py").is_file()]
            yield from found or [node.module]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_dependencies_point_one_way(path: Path):
    allowed = ALLOWED[path.relative_to(ROOT).parts[0]]
    for module in imports(path):
        package = module.split(".")[0]
        if package not in [*PACKAGES, "tests"]:
            continue
        assert package in allowed, f"{name_of(path)} imports {module}"
        modules = allowed[package]
        assert modules is None or module in modules, f"{name_of(path)} imports {module}"


def test_policies_know_arrays_and_nothing_else():
    for name in ("models/policies.py", "models/ops.py", "models/config.py"):
        assert not {module.split(".")[0] for module in imports(ROOT / name)} & HEAVY, name


@pytest.mark.parametrize(
    ("modules", "without"),
    [
        (["models.policies", "models.tasks", "models.encoding", "models.splits"], HEAVY),
        (
            ["benchmarks.records", "benchmarks.statistics", "benchmarks.validity"],
            HEAVY | {"pandas", "matplotlib", "rich"},
        ),
        (
            [
                f"reports.{path.stem}"
                for path in sorted((ROOT / "reports").glob("*.py"))
                if path.stem not in ("__init__", "__main__")
            ],
            HEAVY | {"quant", "benchmarks.suite", "benchmarks.runner"},
        ),
        (["reports.gate_baseline", "reports.gate_output"], HEAVY | {"pandas", "scipy", "matplotlib", "rich"}),
        (["reports.__main__", "benchmarks.__main__", "models.__main__"], HEAVY | {"pandas", "matplotlib"}),
    ],
    ids=["policies", "records", "reports", "gate", "commands"],
)
def test_what_is_not_loaded(modules: list[str], without: set[str]):
    """At run time, in a process of its own: not even by way of another module."""
    loaded = python(f"import sys, {', '.join(modules)}; print(*sys.modules)")
    assert not set(loaded.split()) & without


def test_reports_run_without_the_engines(tmp_path: Path):
    """Where torch and openvino are not even installed, the records still become a table."""
    code = f"""
import sys
sys.modules.update(dict.fromkeys({sorted(HEAVY | {"quant"})}))
from pathlib import Path
from tests.fake_runs import add, early, record
folder = Path({str(tmp_path)!r})
add(folder, record("a"), ms_per_row=2.0)
add(folder, early("b"), ms_per_row=1.0)
from reports.__main__ import main
sys.exit(main(["render", str(folder)]))
"""
    python(code)
    assert (tmp_path / "report" / "results.md").stat().st_size


def test_a_gate_needs_next_to_nothing_and_is_quick(tmp_path: Path):
    """As many runs as the default suite's, where not even pandas is installed, in processor seconds of the process."""
    one, runs = measure(tmp_path / "one"), tmp_path / "runs"
    lines = [(one / RECORDS).read_text().replace("sst2/ck/", f"sst2/ck{copy}/") for copy in range(52)]
    for copy in range(52):
        shutil.copytree(one / "columns" / "sst2" / "ck", runs / "columns" / "sst2" / f"ck{copy}")
    (runs / RECORDS).write_text("".join(lines))
    gate_init(tmp_path / "gate.yaml", runs)
    code = f"""
import sys, time
sys.modules.update(dict.fromkeys({sorted(HEAVY | {"quant", "pandas", "scipy", "matplotlib", "rich"})}))
from reports.__main__ import main
assert main(["gate", {str(tmp_path / "gate.yaml")!r}, {str(runs)!r}]) == 0
print(time.process_time())
"""
    verdict, seconds = python(code).splitlines()
    assert verdict.startswith("Gate gate passed: ")
    assert float(seconds) < 2


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_short_and_silent(path: Path):
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST_FILE
    if name_of(path) in CONSOLE:
        return
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    printed = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    assert not printed, f"{name_of(path)} prints in lines {printed}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_packages_are_found_where_they_stand(path: Path):
    """Run from the repository's root, nothing needs to edit where Python looks."""
    assert "sys.path" not in path.read_text()
