"""Shared by all tests: the real GLUE folder, commands, and an account of skipped tests.

A suite that skips what it was meant to run is green for the wrong reason. With `EXITBENCH_ALLOWED_SKIPS` set to reasons
separated by `;` (or to nothing at all), a skip whose reason contains none of them fails the run.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import quant  # noqa: F401  (before any test imports openvino: it turns the telemetry off)
from benchmarks.__main__ import main
from tests.commands import Said

# They train and run toy networks for minutes.
LONGEST = ("test_shipped_suites.py", "test_shipped_tunings.py", "test_sensitivity.py", "test_runner.py")


@pytest.fixture(scope="session")
def glue_folder() -> Path:
    """The folder of GLUE tasks in their original layout (`SST-2/train.tsv`, ...), named by `EXITBENCH_GLUE`."""
    location = os.environ.get("EXITBENCH_GLUE")
    if not location:
        pytest.skip("EXITBENCH_GLUE is not set (a folder with SST-2/train.tsv and the like)")
    folder = Path(location)
    if not folder.is_dir():
        pytest.fail(f"EXITBENCH_GLUE is not a folder: {folder}", pytrace=False)
    return folder


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run a command of `python -m benchmarks` in this process."""

    def run(*arguments: str | Path) -> Said:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Said(code, *capfd.readouterr())

    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: at the end no process is left alone with one."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def unexpected_skips(config: pytest.Config) -> list[str]:
    """Each skip, of a test or of a whole module, that `EXITBENCH_ALLOWED_SKIPS` does not allow: "test: reason"."""
    allowed = os.environ.get("EXITBENCH_ALLOWED_SKIPS")
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if allowed is None or terminal is None:
        return []
    reasons = [reason for reason in allowed.split(";") if reason]
    skips = [(report.nodeid, report.longrepr[2]) for report in terminal.stats.get("skipped", [])]
    return [f"{test}: {why}" for test, why in skips if not any(reason in why for reason in reasons)]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Turn a pass with unexpected skips into a failure."""
    if session.exitstatus == pytest.ExitCode.OK and unexpected_skips(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name the unexpected skips, above pytest's closing line."""
    for number, skip in enumerate(unexpected_skips(config)):
        if number == 0:
            terminalreporter.section("skips that EXITBENCH_ALLOWED_SKIPS does not allow", red=True)
        terminalreporter.line(skip)
