"""The first thing a worker process runs. Light on imports: it redirects output before the libraries start talking."""

import os
from multiprocessing.connection import Connection
from pathlib import Path


def serve(pipe: Connection, log: Path) -> None:
    """Send this process's output to `log`, then answer requests."""
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    # Before any kernel library starts its threads: they must sleep while another worker has the turn.
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    from benchmarks.worker import answer_requests

    answer_requests(pipe)
