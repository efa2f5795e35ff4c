"""What a served graph holds in memory."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino as ov
import openvino.opset15 as ov_ops
import pytest

from quant.footprint import resident_bytes

OPTIONS = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}


def in_openvino(folder: Path, matrix: np.ndarray) -> Path:
    given = ov_ops.parameter([-1, 1024], np.float32, name="given")
    given.output(0).set_names({"given"})
    model = ov.Model([ov_ops.result(ov_ops.matmul(given, ov_ops.constant(matrix), False, False))], [given], "product")
    path = folder / f"{matrix.shape[1]}.xml"
    ov.save_model(model, path, compress_to_fp16=False)
    return path


def in_onnx(folder: Path, matrix: np.ndarray) -> Path:
    given, found = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("given", "found")
    )
    node = onnx.helper.make_node("MatMul", ["given", "matrix"], ["found"])
    graph = onnx.helper.make_graph(
        [node], "product", [given], [found], [onnx.numpy_helper.from_array(matrix, "matrix")]
    )
    path = folder / f"{matrix.shape[1]}.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize(
    ("saved", "options"), [(in_openvino, OPTIONS), (in_onnx, {"intra_op_num_threads": 1})], ids=["openvino", "onnx"]
)
def test_weights_are_in_it(saved: Callable[[Path, np.ndarray], Path], options: dict[str, Any], tmp_path: Path):
    """Of one product with a matrix of 1024 rows."""
    inputs, random = {"given": np.ones((2, 1024), np.float32)}, np.random.default_rng(0)
    matrices = [random.normal(size=(1024, columns)).astype(np.float32) for columns in (4, 16384)]
    small, large = (resident_bytes(saved(tmp_path, matrix), inputs, options) for matrix in matrices)
    assert 0 < small < 64 * 2**20
    assert 64 * 2**20 < large - small < 3 * 64 * 2**20  # once as read, once as kernels want it, at most


def test_a_graph_that_cannot_be_read_is_no_footprint_of_zero(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    (tmp_path / "broken.xml").write_text("<net")
    with pytest.raises(subprocess.CalledProcessError):
        resident_bytes(tmp_path / "broken.xml", {}, OPTIONS)
    assert "broken.xml" in capfd.readouterr().err
