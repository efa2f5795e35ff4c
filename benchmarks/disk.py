"""Output folders as the disk sees them: one process at a time writes to one, and what cannot be written is named."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.config import UserError

LOCK, LOCK_WAIT_S = ".lock", 10.0


@contextmanager
def writing(folder: Path, wait_s: float = 0) -> Iterator[None]:
    """Hold an output folder, made if need be: one process at a time writes to it. However the process ends, it lets go.

    Args:
        folder: the output folder. Whoever holds it already may hold it again.
        wait_s: how long another process is waited for.

    Raises:
        UserError: another process still holds it.
    """
    from filelock import FileLock, Timeout  # reports, which only read, are made where it is not installed

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, is_singleton=True, thread_local=False)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout:
        raise UserError(
            f"another process is writing to {str(folder)!r}: wait until it ends, or give another --output"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file that cannot be written: of a full disk the system only says that it is full.

    Raises:
        OSError: whatever the system said, with `path` as its file name.
    """
    try:
        yield
    except OSError as error:
        reason = str(error) if error.errno is None else os.strerror(error.errno)
        raise OSError(error.errno, reason, str(path)) from error
