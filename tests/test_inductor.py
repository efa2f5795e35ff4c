"""Engine `inductor` from suite to record, on a network of two layers: compiling is what takes the time."""

from pathlib import Path

from benchmarks.__main__ import main
from benchmarks.records import read_records

SUITE = """
schema: exitbench/suite/1
name: compiled
tasks: [{kind: synthetic, fit_rows: 200, select_rows: 50, tune_rows: 50, dev_rows: 50}]
checkpoints:
  - method: pabee
    backbone: {kind: fresh, family: bert, num_layers: 2, hidden_size: 32, num_heads: 2}
    train: {max_seq_length: 48}
recipes: [float32, int8_static]
engines: [inductor]
policies: [full_depth, {kind: entropy, threshold: 0.6931}]
"""


def test_compiled_programs_agree_with_their_replay(tmp_path: Path):
    (tmp_path / "compiled.yaml").write_text(SUITE)
    folders = ["--output", str(tmp_path / "out"), "--checkpoints", str(tmp_path / "checkpoints")]
    assert main(["run", str(tmp_path / "compiled.yaml"), "--smoke", *folders]) == 0
    records = read_records(tmp_path / "out")
    assert [record.error for record in records if record.status != "ok"] == []
    assert {(record.recipe["kind"], record.program) for record in records} == {
        (recipe, program) for recipe in ("float32", "int8_static") for program in ("single", "stepped")
    }
    for record in records:
        assert record.parity is not None
        assert record.parity.differing == record.parity.below_epsilon
