"""The first thing a worker process runs. Light on imports: it redirects output before the libraries start talking."""

import os
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread


def serve(pipe: Connection, log: Path, processors: list[int] | None) -> None:
    """Send this process's output to `log`, keep to `processors` if any are given, then answer requests."""
    if processors is not None:
        os.sched_setaffinity(0, processors)  # now, so that libraries count and pin no others
    Thread(target=_end_with_the_runner, daemon=True).start()
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    # Before any kernel library starts its threads: they must sleep while another worker has the turn.
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    from benchmarks.worker import answer_requests

    answer_requests(pipe)


def _end_with_the_runner() -> None:
    """A killed runner's workers would go on with what they were asked, beside those of the run that resumes."""
    runner = parent_process()
    if runner is not None:
        runner.join()
        os._exit(1)
