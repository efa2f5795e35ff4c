"""What a served graph holds in memory."""

import subprocess
from pathlib import Path

import numpy as np
import openvino as ov
import openvino.opset15 as ov_ops
import pytest

from quant.footprint import resident_bytes

OPTIONS = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}


def saved(folder: Path, columns: int) -> Path:
    """One product with a matrix of 1024 rows."""
    given = ov_ops.parameter([-1, 1024], np.float32, name="given")
    given.output(0).set_names({"given"})
    matrix = np.random.default_rng(0).normal(size=(1024, columns)).astype(np.float32)
    model = ov.Model([ov_ops.result(ov_ops.matmul(given, ov_ops.constant(matrix), False, False))], [given], "product")
    ov.save_model(model, folder / f"{columns}.xml", compress_to_fp16=False)
    return folder / f"{columns}.xml"


def test_weights_are_in_it(tmp_path: Path):
    inputs = {"given": np.ones((2, 1024), np.float32)}
    small, large = (resident_bytes(saved(tmp_path, columns), inputs, OPTIONS) for columns in (4, 16384))
    assert 0 < small < 64 * 2**20
    assert 64 * 2**20 < large - small < 3 * 64 * 2**20  # once as read, once as kernels want it, at most


def test_a_graph_that_cannot_be_read_is_no_footprint_of_zero(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    (tmp_path / "broken.xml").write_text("<net")
    with pytest.raises(subprocess.CalledProcessError):
        resident_bytes(tmp_path / "broken.xml", {}, OPTIONS)
    assert "broken.xml" in capfd.readouterr().err
