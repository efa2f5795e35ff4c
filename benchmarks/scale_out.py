"""Scale-out: a suite's fine-tunings, then its recording passes, over a Ray cluster, before anything is timed.

Both leave the files that a serial run leaves. The run that follows finds them, so its records are the same, and nothing
is ever timed while other work shares the machine. Every node must see the same folders under the same paths: this
repository, the checkpoints and the output. A task whose process dies is started again, and a fine-tuning goes on from
its last saved state.

A fine-tuning has as many threads as it has here (OMP_NUM_THREADS, or all cores): their number decides the last bits of
a checkpoint. A recording pass has those of its shape.
"""

import logging
import os
import socket
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from benchmarks.recordings import Recording, save_recording
from benchmarks.runner import Key, encode_recorded, recording_of, unfinished, worker_key, worker_log, worker_spec
from benchmarks.session import Plan, Say, Session
from benchmarks.suite import RunSpec, Shape
from benchmarks.worker import Worker, WorkerError, WorkerSpec
from models.checkpoints import is_checkpoint
from models.config import UserError, first_line
from models.tasks import TaskData
from models.training import TrainingSpec, fine_tune

# How often a task is started again whose process died.
RETRIES = 3


@contextmanager
def cluster(address: str) -> Iterator[None]:
    """Join the Ray cluster at an address, or start one on this machine if it is `local`, and leave or stop it again.

    Raises:
        UserError: Ray is not installed, or there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing here phones home
    try:
        import ray
    except ImportError:
        raise UserError(
            "--ray needs Ray, which is not installed: pip install --constraint requirements.lock --group ray"
        ) from None
    here = {"env_vars": {"PYTHONPATH": str(Path(__file__).parents[1])}}
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdecimal():  # Ray itself would wait for minutes
            socket.create_connection((host.removeprefix("ray://"), int(port)), timeout=10).close()
        ray.init(address, runtime_env=here, logging_level=logging.WARNING, include_dashboard=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"--ray: no cluster answers at {address!r} ({first_line(error)}); `local` needs none"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def fine_tune_all(plans: Iterable[Plan], say: Say) -> None:
    """Fine-tune what is not there yet, one task a checkpoint. Within `cluster`.

    Raises:
        UserError: one of the fine-tunings cannot be done, or its process dies again and again.
    """
    threads = torch.get_num_threads()
    jobs = {
        folder.name: (training, plan.data, folder.resolve(), threads)
        for plan in plans
        for folder, training in plan.needed
        if training is not None and not is_checkpoint(folder)
    }
    if jobs:
        say(f"{len(jobs)} fine-tunings over Ray, {threads} threads each: {', '.join(jobs)}")
        _fan_out(_fine_tune, jobs, threads)


def record_all(session: Session, say: Say) -> None:
    """Make the recording passes a session lacks, one task each. Within `cluster`.

    One that fails is left to the run that follows, whose records say why.

    Raises:
        UserError: the process of one dies again and again.
    """
    together: dict[tuple[Shape, Key], list[RunSpec]] = {}
    for run in unfinished(session):
        together.setdefault((run.shape, worker_key(run)), []).append(run)
    encoded, jobs, begun = encode_recorded(session), defaultdict(dict), set()
    for (shape, key), runs in together.items():
        exits, path = recording_of(session, runs)
        if not path.exists() and path not in begun:  # shapes that differ in the order of timed rows share one
            begun.add(path)
            spec, log = worker_spec(session, runs[0], encoded), worker_log(session, runs[0])
            name = f"{shape.label} {' '.join(key)}"
            jobs[spec.threads][name] = (spec, shape, exits, path.resolve(), log.resolve())
    for threads, passes in jobs.items():
        say(f"  {len(passes)} recording passes over Ray, {threads} threads each")
        _fan_out(_record, passes, threads)


def _fan_out(function: Callable[..., str | None], jobs: Mapping[str, tuple[Any, ...]], threads: int) -> None:
    """Call a function with the arguments of every job, each in a process of the cluster that is named as the job."""
    import ray
    from ray.exceptions import WorkerCrashedError

    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    processors = min(threads, max(nodes))  # more than a node has would be waited for without end
    remote = ray.remote(num_cpus=processors, max_retries=RETRIES)(function)
    pending = {remote.options(name=name).remote(*arguments): name for name, arguments in jobs.items()}
    for _ in track(range(len(jobs)), description="  over Ray"):
        (finished, *_), _ = ray.wait([*pending])
        name = pending.pop(finished)
        try:
            refused = ray.get(finished)
        except WorkerCrashedError:
            raise UserError(f"--ray: the process of {name} died {RETRIES + 1} times: is there enough memory?") from None
        if refused is not None:
            raise UserError(refused)


def _fine_tune(training: TrainingSpec, data: TaskData, folder: Path, threads: int) -> str | None:
    """In a process of the cluster. Answers why it cannot be done, if so."""
    torch.set_num_threads(threads)
    try:
        fine_tune(training, data, folder)
    except UserError as error:
        return str(error)
    return None


def _record(spec: WorkerSpec, shape: Shape, exits: list[int], path: Path, log: Path) -> None:
    """In a process of the cluster, which opens a worker just as the runner does."""
    worker = Worker(spec, log)
    try:
        with suppress(WorkerError):
            save_recording(path, Recording(exits, worker("record", shape, exits)))
    finally:
        worker.stop()
