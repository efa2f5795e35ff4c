"""A suite over a Ray cluster of this machine leaves what a serial run leaves, though its processes are killed."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.records import read_records
from tests import suites
from tests.kills import AXES, comparable

SUITE = AXES | {
    "shapes": [{"batch_size": 4, "threads": 1, "order": ["given", "by_length"]}],
    "timing": {"rows": 8, "repeats": 1},
}
CHECKPOINT, PASS = "synthetic-pabee-", "b4-longest-1t "


@contextmanager
def killed_once(*names: str) -> Iterator[dict[str, int]]:
    """Kill, of Ray's processes here, the first at work on a task whose name begins so; name -> pid once it is dead."""
    killed: dict[str, int] = {}
    over = threading.Event()

    def look() -> None:
        while not over.is_set() and len(killed) < len(names):
            for process in psutil.process_iter(["cmdline"]):
                title = " ".join(process.info["cmdline"] or [])
                for name in names:
                    if title.startswith(f"ray::{name}") and name not in killed:
                        process.kill()
                        killed[name] = process.pid
            time.sleep(0.02)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield killed
    finally:
        over.set()
        watcher.join()


def test_over_ray_the_records_are_the_serial_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    suite, threads = str(suites.write(tmp_path, **SUITE)), torch.get_num_threads()

    def run(name: str, *more: str) -> dict:
        folders = ["--output", str(tmp_path / name), "--checkpoints", str(tmp_path / name / "checkpoints")]
        assert main(["run", suite, *folders, *more]) == 0
        return comparable(read_records(tmp_path / name))

    serial = run("serial")
    capsys.readouterr()
    with killed_once(CHECKPOINT, PASS) as killed:
        over_ray = run("ray", "--ray", "local")
    assert killed.keys() == {CHECKPOINT, PASS}
    said = capsys.readouterr().err
    assert f"1 fine-tunings over Ray, {threads} threads each: {CHECKPOINT}" in said
    assert "2 recording passes over Ray, 1 threads each" in said
    assert over_ray == serial
    run("ray", "--ray", "local")
    assert "over Ray" not in capsys.readouterr().err  # nothing was left to do


def test_a_fine_tuning_that_cannot_be_done_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    diverging = suites.TINY["checkpoints"][0] | {"train": {"epochs": 2.0, "learning_rate": 1e30, "max_seq_length": 40}}
    suite = str(suites.write(tmp_path, checkpoints=[diverging]))
    assert main(["train", suite, "--checkpoints", str(tmp_path / "checkpoints"), "--ray", "local"]) == 2
    assert "lower learning_rate" in capsys.readouterr().err.splitlines()[-1]


def test_where_no_cluster_answers_that_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", str(suites.write(tmp_path)), "--ray", "127.0.0.1:1"]) == 2
    assert "no cluster answers at '127.0.0.1:1'" in capsys.readouterr().err


def test_without_ray_the_line_says_how_to_install_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["train", str(suites.write(tmp_path)), "--ray", "local"]) == 2
    assert "pip install --constraint requirements.lock --group ray" in capsys.readouterr().err
