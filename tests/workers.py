"""Workers that live in the test's own process, where they start at once and can be broken on purpose."""

import multiprocessing as mp
from pathlib import Path
from threading import Thread
from typing import Any

from benchmarks.worker import Worker, WorkerSpec, answer_requests


class ThreadWorker(Worker):
    """A worker on a thread: the same requests and answers over the same kind of pipe."""

    def __init__(self, spec: WorkerSpec, log: Path):
        self.pipe, theirs = mp.Pipe()
        self.thread = Thread(target=answer_requests, args=(theirs,), daemon=True)
        self.thread.start()
        self.pipe.send(spec)
        self.asked: tuple[str, tuple[Any, ...]] | None = None

    def ask(self, request: str, *arguments: Any) -> None:
        """Only remember the request: exporters are not made for two threads at a time."""
        self.asked = (request, arguments)

    def answer(self) -> Any:
        """Send the request and wait."""
        self.pipe.send(self.asked)
        return super().answer()

    @property
    def alive(self) -> bool:
        return self.thread.is_alive()

    def stop(self) -> None:
        self.pipe.send(("stop", ()))
        self.thread.join(timeout=10)


class DeadWorker(Worker):
    """A worker whose process is killed as soon as it starts, as for want of memory."""

    def __init__(self, spec: WorkerSpec, log: Path):
        super().__init__(spec, log)
        self.process.kill()
        self.process.join()
