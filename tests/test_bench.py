"""What a tuning keeps open while it tries one program after the other."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

import benchmarks.bench as bench
from benchmarks.bench import WorkerBench
from benchmarks.expansion import expand
from benchmarks.tuning import Performance
from tests.suites import parse


class Opened:
    """A worker that only says when it is stopped."""

    def __init__(self, name: str, stopped: list[str]):
        self.name, self.stopped = name, stopped

    def stop(self) -> None:
        self.stopped.append(self.name)


@pytest.mark.parametrize(("taken", "stopped"), [(10.0, []), (90.0, ["a", "b"])], ids=["room", "no room"])
def test_workers_stay_while_there_is_memory(
    taken: float, stopped: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ended: list[str] = []
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(percent=taken))
    monkeypatch.setattr(bench, "encode", lambda *_: None)
    monkeypatch.setattr(bench, "max_length", lambda _: 8)
    monkeypatch.setattr(bench, "open_workers", lambda _, run, *__, **___: [Opened(run.checkpoint, ended)])
    monkeypatch.setattr(bench, "ask_all", lambda workers, *_: [workers[0].name])
    suite = parse(tmp_path)
    anchor = expand(suite, suite.tasks[0], "anchor", 2)[0]
    session: Any = SimpleNamespace(
        data=SimpleNamespace(splits={"tune": [None] * 4}), main=SimpleNamespace(tokenizer=None), suite=suite
    )
    with WorkerBench(session, anchor, Performance(), footprint=False) as opened:
        runs = [anchor, *(replace(anchor, checkpoint=name) for name in "abc")]
        assert [opened._call(run, "record") for run in runs] == [["anchor"], ["a"], ["b"], ["c"]]
        assert ended == stopped
        opened._call(anchor, "record")
        assert "anchor" not in ended
    assert sorted(ended) == ["a", "anchor", "b", "c"]
