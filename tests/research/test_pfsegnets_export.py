"""Exported files compute what the published codes do, selected points included."""

import numpy as np
import pytest

from model_utils.backends import MindirBackend, OnnxBackend
from model_utils.exporting import ExportInput, export
from model_utils.folding import fold
from research.pfsegnets.src.prediction import Prediction
from tests import seeded
from tests.research.parity import relative
from tests.research.test_pfsegnets_network import build


def fixture(name):
    description, arrays = seeded.load_fixture(name)
    ((key, shape),) = description["inputs"].items()
    return build(description), seeded.network_input(key, shape), arrays


@pytest.mark.parametrize(
    ("name", "file_format"), [("PFNet_R50", "ONNX"), ("PFNet_R2N101", "MINDIR")]
)
def test_any_batch_of_logits(name, file_format, tmp_path):
    """A second image, mirrored, must not change the first one's points."""
    network, image, arrays = fixture(name)
    inputs = [ExportInput("image", (None, *image.shape[1:]))]
    shapes = [[(2, *image.shape[1:])]]
    report = export(
        Prediction(network), inputs, tmp_path / "net", file_format, sizes=shapes, tolerance=2e-5
    )
    assert not [name for name in report.unused_parameters if "edge_final" not in name]
    with (OnnxBackend if file_format == "ONNX" else MindirBackend)(report.path) as backend:
        both = np.concatenate([image[..., ::-1], image])
        for batch in (both, image):
            (logits,) = backend.run(batch)
            assert relative(logits[-1:, :, ::2, ::2], arrays["head_s2"]) < 1e-5
        assert len(logits) == 1


def test_class_numbers_of_the_folded_network(tmp_path):
    """BatchNorm folded, pooling of the Jittor port, class numbers out."""
    import onnx

    network, image, arrays = fixture("PFNet_R50_jittor")
    folded = fold(Prediction(network, "classes"), image.shape).cell
    inputs = [ExportInput("image", image.shape)]
    report = export(folded, inputs, tmp_path / "net", "ONNX", output_names=["classes"])
    kinds = [node.op_type for node in onnx.load(report.path).graph.node]
    assert "BatchNormalization" not in kinds
    assert "TopK" in kinds
    with OnnxBackend(report.path) as backend:
        (classes,) = backend.run(image)
    assert classes.shape == (1, *image.shape[2:])
    assert classes.dtype == np.int32
    scores = arrays["logits_s8"]
    best, second = -np.sort(-scores, axis=1)[:, :2].swapaxes(0, 1)
    clear = best - second > 1e-4 * np.abs(scores).max()
    assert clear.mean() > 0.99
    expected = scores.argmax(1)
    np.testing.assert_array_equal(classes[:, ::8, ::8][clear], expected[clear])
    assert len(np.unique(expected)) > 3
