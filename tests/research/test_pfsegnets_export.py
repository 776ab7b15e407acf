"""Exported files compute what the published codes do, selected points included."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from model_utils.backends import MindirBackend, OnnxBackend
from model_utils.exporting import ExportInput, export
from model_utils.folding import fold
from research.pfsegnets.src.point_flow import PointFlow
from research.pfsegnets.src.pooling import pooling_windows
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


class SalientPlaces(nn.Cell):
    def __init__(self, module):
        super().__init__(auto_prefix=False)
        self.module = module

    def construct(self, high, low):
        return self.module.maximum(self.module.certainty(high, low))[1]


@pytest.mark.parametrize("bias", [0.0, -30.0, -80.0])
def test_points_follow_the_order_of_the_smallest_certainties(bias, tmp_path):
    """A bias moves all certainties and changes no order; runtimes' sigmoids end at 1e-8."""
    module = PointFlow(8, 4, max_pool_size=3, avg_pool_size=3, edge_points=4)
    rng = np.random.default_rng(5)
    for parameter in module.get_parameters():
        if parameter.ndim > 1:
            values = 0.5 * rng.standard_normal(parameter.shape)
            parameter.set_data(ms.Tensor(values.astype(np.float32)))
    high = rng.standard_normal((2, 8, 10, 10)).astype(np.float32)
    low = rng.standard_normal((2, 8, 20, 20)).astype(np.float32)
    match = module.point_matcher.match_conv
    module.set_train(False)
    match.bias.set_data(ms.Tensor(np.zeros(1, np.float32)))
    certain = module.certainty(ms.Tensor(high), ms.Tensor(low)).asnumpy().reshape(2, 100)
    logits = np.log(certain / (1 - certain)).reshape(2, 10, 10)
    windows = pooling_windows(10, 3, "torch")
    expected = [
        [
            _place(image[top:end, left:right], top, left)
            for top, end in windows
            for left, right in windows
        ]
        for image in logits
    ]
    match.bias.set_data(ms.Tensor(np.full(1, bias, np.float32)))
    inputs = [ExportInput("high", high.shape), ExportInput("low", low.shape)]
    report = export(SalientPlaces(module), inputs, tmp_path / "net", "ONNX")
    with OnnxBackend(report.path) as backend:
        np.testing.assert_array_equal(backend.run(high, low)[0], expected)


def _place(window, top, left):
    row, column = np.unravel_index(window.argmax(), window.shape)
    return (top + row) * 10 + left + column
