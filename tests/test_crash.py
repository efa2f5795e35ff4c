"""Whatever ends a run, nothing that was measured is lost, and one line says what to do."""

import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.disk import writing
from benchmarks.recordings import Recording, save_recording
from benchmarks.records import RECORDS, append_record, read_records, timings_path, write_columns
from models.command import exit_code
from models.config import UserError
from tests import suites
from tests.fake_runs import record
from tests.kills import ROOT

KILLS = 40
NOISE = np.random.default_rng(0).normal(size=10_000)  # does not compress


def test_kills_at_any_moment_lose_nothing_that_was_written():
    """In a process without PyTorch. `python -m tests.kills 200` kills more often."""
    command = [sys.executable, "-m", "tests.kills", str(KILLS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"Tally\(kills={KILLS}, cut_lines=\d+, folders=[1-9]\d*\)\n", done.stdout)


def test_only_one_process_writes_to_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    append_record(tmp_path, record("a"))
    code = "import sys; from pathlib import Path; from benchmarks.disk import writing\n"
    code += f"with writing(Path({str(tmp_path)!r})): print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    line = f"another process is writing to {str(tmp_path)!r}: wait until it ends, or give another --output"
    try:
        assert main(["run", str(suites.write(tmp_path)), "--output", str(tmp_path)]) == 2
        assert capsys.readouterr().err == f"Error: {line}\n"
        with pytest.raises(UserError, match="another process is writing"), writing(tmp_path, wait_s=0.1):
            pass
        assert [one.run_id for one in read_records(tmp_path)] == ["a"]  # reading needs no leave
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    append_record(tmp_path, record("b"))
    assert [one.run_id for one in read_records(tmp_path)] == ["a", "b"]


def test_writers_take_turns(tmp_path: Path):
    """Two processes append at once, each a hundred records: a line of one is never taken for an unfinished one."""
    code = "import sys; from pathlib import Path; from benchmarks.records import append_record\n"
    code += "from tests.fake_runs import record\n"
    code += f"for number in range(100): append_record(Path({str(tmp_path)!r}), record(f'{{sys.argv[1]}}-{{number}}'))"
    writers = [subprocess.Popen([sys.executable, "-c", code, name]) for name in ("a", "b")]
    assert [writer.wait() for writer in writers] == [0, 0]
    found = [one.run_id for one in read_records(tmp_path)]
    assert sorted(found) == sorted(f"{name}-{number}" for name in "ab" for number in range(100))


WRITES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "records": (RECORDS, lambda folder: append_record(folder, record("b", case="long" * 1000))),
    "columns": (
        "columns/b/timings.parquet",
        lambda folder: write_columns(timings_path(folder, record("b")), {"seconds": NOISE}),
    ),
    "recording": (
        "recordings/r/exits.npz",
        lambda folder: save_recording(folder / "recordings/r/exits.npz", Recording([1], {"dev": NOISE})),
    ),
}


@pytest.fixture
def _room_for_4_kb() -> Iterator[None]:
    """No file of this process can grow further, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("_room_for_4_kb")
@pytest.mark.parametrize("what", WRITES)
def test_a_write_that_the_disk_refuses_names_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str):
    append_record(tmp_path, record("a"))
    path, write = WRITES[what]
    assert exit_code(lambda: write(tmp_path) or 0, "run") == 2
    assert capsys.readouterr().err == f"Error: File too large: {tmp_path / path}\n"
    assert [one.run_id for one in read_records(tmp_path)] == ["a"]
    assert what == "records" or not (tmp_path / path).exists()
    append_record(tmp_path, record("c"))  # there is room for a short one, where the long one was cut
    assert [one.run_id for one in read_records(tmp_path)] == ["a", "c"]


def test_a_full_disk_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / RECORDS).symlink_to("/dev/full")
    assert exit_code(lambda: append_record(tmp_path, record("a")) or 0, "run") == 2
    assert capsys.readouterr().err == f"Error: No space left on device: {tmp_path / RECORDS}\n"


READ_ONLY = """
import os, sys
from pathlib import Path
from benchmarks.records import append_record
from models.command import exit_code
from tests.fake_runs import record
folder = Path(sys.argv[1])
append_record(folder, record("a"))
folder.chmod(0o555)
if os.geteuid() == 0:  # who may write anywhere
    os.seteuid(65534)
sys.exit(exit_code(lambda: append_record(folder, record("b")), "run"))
"""


def test_a_read_only_folder_says_so():
    with tempfile.TemporaryDirectory() as parent:  # pytest's own folders may not be entered by anyone else
        Path(parent).chmod(0o755)
        folder = Path(parent) / "output"
        command = [sys.executable, "-c", READ_ONLY, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (2, f"Error: Permission denied: {folder}/.lock\n")
        assert [one.run_id for one in read_records(folder)] == ["a"]
