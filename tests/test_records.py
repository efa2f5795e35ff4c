"""Records: what is written is read back, whatever a kill left behind, and damage is told in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from benchmarks.recordings import recording_path
from benchmarks.records import (
    Calibration,
    append_record,
    examples_path,
    read_columns,
    read_records,
    timings_path,
    write_columns,
)
from models.config import UserError
from tests.fake_runs import early, record


def write(folder: Path, *records) -> Path:
    for one in records:
        append_record(folder, one)
    return folder / "records.jsonl"


def test_round_trip(tmp_path: Path):
    calibration = Calibration(split="fit", rows=128, seed=1, ids_hash="1d5")
    written = [
        record("a", calibration=calibration),
        early("b", {"kind": "imposed", "exit_layers": [1, 3]}),
        record("c", status="error", error="naïve\nfailure", checkpoint=None, program=None),
    ]
    write(tmp_path / "deep" / "folder", *written)
    assert read_records(tmp_path / "deep" / "folder") == written


def test_the_newest_of_a_run_id_stands_in_the_first_place(tmp_path: Path):
    write(tmp_path, record("a", status="error", error="first"), record("b"), record("a"))
    found = read_records(tmp_path)
    assert [(one.run_id, one.status) for one in found] == [("a", "ok"), ("b", "ok")]


def test_a_cut_last_line_is_left_out(tmp_path: Path):
    path = write(tmp_path, record("a"), record("b"))
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    for end in (first, first + 1, len(content) // 2 + first // 2, len(content) - 1):
        path.write_bytes(content[:end])
        assert [one.run_id for one in read_records(tmp_path)] == ["a"]


def test_append_after_a_cut_line(tmp_path: Path):
    path = write(tmp_path, record("a"), record("b"))
    path.write_bytes(path.read_bytes()[:-20])
    append_record(tmp_path, record("c"))
    assert [one.run_id for one in read_records(tmp_path)] == ["a", "c"]
    path.write_bytes(b'{"cut')
    append_record(tmp_path, record("d"))
    assert [one.run_id for one in read_records(tmp_path)] == ["d"]


def test_append_to_an_empty_file(tmp_path: Path):
    (tmp_path / "records.jsonl").touch()
    assert read_records(tmp_path) == []
    append_record(tmp_path, record("a"))
    assert [one.run_id for one in read_records(tmp_path)] == ["a"]


def test_missing_file(tmp_path: Path):
    with pytest.raises(UserError, match=r"holds no records\.jsonl"):
        read_records(tmp_path)


@pytest.mark.parametrize("version", ["exitbench/record/0", None])
def test_other_schema_version(tmp_path: Path, version: str | None):
    path = write(tmp_path, record("a"))
    raw = json.loads(path.read_text())
    raw["schema_version"] = version
    path.write_text(json.dumps(raw) + "\n")
    with pytest.raises(UserError, match=rf"records\.jsonl:1 has schema .*{version}"):
        read_records(tmp_path)


@pytest.mark.parametrize("line", ["not json", "[]", '"text"', "{}", '{"schema_version": "exitbench/record/1"}', ""])
def test_a_line_that_is_no_record(tmp_path: Path, line: str):
    path = write(tmp_path, record("a"))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match=r"records\.jsonl:2 ") as raised:
        read_records(tmp_path)
    assert "\n" not in str(raised.value)


def test_unknown_fields_are_refused():
    with pytest.raises(ValidationError):
        record("a", speedup=2.0)


def test_columns_round_trip(tmp_path: Path):
    columns = {"id": ["dev-0", "dev-1"], "label": np.array([0, 1]), "score": np.array([0.5, 1.5], np.float32)}
    path = examples_path(tmp_path, "a")
    write_columns(path, columns)
    found = read_columns(path)
    assert list(found) == ["id", "label", "score"]
    assert list(found["id"]) == ["dev-0", "dev-1"]
    assert (found["label"].dtype, found["score"].dtype) == (np.int64, np.float32)
    assert list(read_columns(path, ["label"])) == ["label"]
    assert [file.name for file in path.parent.iterdir()] == ["examples.parquet"]


def test_columns_are_written_whole_or_not_at_all(tmp_path: Path):
    path = timings_path(tmp_path, record("a"))
    write_columns(path, {"seconds": [1.0]})
    with pytest.raises(ValueError, match="length"):
        write_columns(path, {"seconds": [1.0], "rows": [1, 2]})
    assert read_columns(path)["seconds"] == [1.0]


def test_damaged_columns_are_one_line(tmp_path: Path):
    path = timings_path(tmp_path, record("a"))
    with pytest.raises(UserError, match=r"timings\.parquet"):
        read_columns(path)
    write_columns(path, {"seconds": [1.0]})
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="run the suite again") as raised:
        read_columns(path)
    assert "\n" not in str(raised.value)


def test_paths(tmp_path: Path):
    assert recording_path(tmp_path, "r").relative_to(tmp_path).as_posix() == "recordings/r/exits.npz"
    assert examples_path(tmp_path, "a").parent == timings_path(tmp_path, record("a")).parent
