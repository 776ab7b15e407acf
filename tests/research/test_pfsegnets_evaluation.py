"""PFNet's evaluation: the reference's metrics and windows, known predictions, files written."""

import numpy as np
import pytest
from mindspore import Tensor
from sklearn.metrics import jaccard_score

from model_utils.distributed import Ranks
from model_utils.errors import UserError
from model_utils.files import write_image
from model_utils.segmentation import IGNORE
from research.pfsegnets.src import evaluation
from research.pfsegnets.src.boundary import (
    ImageBoundaryScores,
    boundary_map,
    boundary_scores,
    radius,
)
from research.pfsegnets.src.evaluation import evaluate, protocol_lines
from research.pfsegnets.src.network import PFNet
from tests.research.pfsegnets_scorer import TABLE, make_config, make_data, scorer
from tests.seeded import load_fixture

ONE = Ranks()


@pytest.fixture(scope="module")
def reference():
    about, arrays = load_fixture("PFNet_metrics")
    return about["values"], arrays


# -- boundaries ---------------------------------------------------------------------------------


def test_the_references_boundary_pixels(reference):
    _, arrays = reference
    found = boundary_map(arrays["gt"][1] == 2)
    np.testing.assert_array_equal(found, arrays["bmap_gt_class2"].astype(bool))


@pytest.mark.parametrize("threshold", ["0.0005", "0.001875", "0.00375", "0.005", "0.008", "2"])
def test_the_references_boundary_scores(reference, threshold):
    values, arrays = reference
    expected = values["boundary"][threshold]
    assert radius(float(threshold), (96, 96)) == expected["radius_px"]
    scores = ImageBoundaryScores(2, 7, [0.1, float(threshold)])
    for index, (truth, prediction) in enumerate(zip(arrays["gt"], arrays["pred"], strict=True)):
        found = boundary_scores(truth, prediction, 7, [float(threshold)])[0]
        f_and_precision = np.array(expected["F_precision_per_class_per_image"])[:, index]
        np.testing.assert_allclose(found[:, [2, 0]], f_and_precision, rtol=1e-12)
        scores.add(index, truth, prediction)
    mean = scores.f_scores(ONE)[float(threshold)]
    np.testing.assert_allclose(mean, np.divide(expected["Fpc"], expected["Fc"]), rtol=1e-12)
    assert mean.mean() == pytest.approx(expected["mean_F"], rel=1e-12)


@pytest.mark.parametrize("threshold", ["0.0005", "0.001875", "0.00375", "0.005", "0.008"])
def test_the_references_boundary_scores_of_a_larger_image(reference, threshold):
    values, arrays = reference
    expected = values["boundary300"][threshold]
    assert radius(float(threshold), (300, 300)) == expected["radius_px"]
    truth, prediction = arrays["gt300"][0], arrays["pred300"][0]
    found = boundary_scores(truth, prediction, len(expected["F"]), [float(threshold)])
    np.testing.assert_allclose(found[0, :, 2], expected["F"], rtol=1e-12)


# -- figures ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


def expected_iou(truths, predictions):
    truth, prediction = (
        np.concatenate([part.ravel() for part in parts]) for parts in (truths, predictions)
    )
    known = truth != IGNORE
    return jaccard_score(
        truth[known], prediction[known], labels=range(4), average=None, zero_division=0
    )


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("mosaic", [False, True])
@pytest.mark.parametrize("scales", [[1.0], [1.0, 1.0]])
def test_known_predictions_give_known_figures(data, batch_size, mosaic, scales):
    """Sizes that are no multiple of 32 are padded and cut again."""
    dataset, truths, predictions = data
    config = make_config(batch_size=batch_size, scales=scales, mosaic=mosaic)
    metrics = evaluate(scorer, dataset, config, ONE)
    iou = expected_iou(truths, predictions)
    assert list(metrics["iou"]) == list(TABLE.names)
    np.testing.assert_allclose(list(metrics["iou"].values()), iou, rtol=1e-12)
    assert metrics["miou"] == pytest.approx(iou.mean())
    known = [truth != IGNORE for truth in truths]
    right = sum(((t == p) & k).sum() for t, p, k in zip(truths, predictions, known, strict=True))
    assert metrics["pixel_accuracy"] == pytest.approx(right / sum(k.sum() for k in known))
    assert "3 sizes 1x1 to 96x64" in metrics["protocol"]
    assert "all 4 classes (1 without a labelled pixel)" in metrics["protocol"]


def test_absent_classes_count_only_in_the_mean_over_all(tmp_path):
    dataset, truths, predictions = make_data(tmp_path, [(32, 64)] * 2)
    for index, prediction in enumerate(predictions):
        image = dataset.read_image(index)
        image[:, :, 1][prediction == 3] = 0  # class 3 neither true nor predicted
        write_image(dataset.pairs[index].image, image)
        prediction[prediction == 3] = 0
    metrics = evaluate(scorer, dataset, make_config(), ONE)
    iou = expected_iou(truths, predictions)
    assert metrics["miou"] == pytest.approx(iou.sum() / 4)
    assert metrics["miou_present"] == pytest.approx(iou[:3].mean())


def test_data_without_masks_and_other_class_counts_are_refused(data):
    dataset = data[0]
    with pytest.raises(UserError, match="tells 6 classes apart, the data has 4"):
        evaluate(lambda x: np.pad(scorer(x), ((0, 0), (0, 2), (0, 0), (0, 0))), dataset,
                 make_config(), ONE)  # fmt: skip
    with pytest.raises(UserError, match="tells 16 classes apart, the data has 4"):
        evaluate(PFNet(classes=16), dataset, make_config(), ONE)


def test_a_network_and_its_logits_give_the_same_figures(tmp_path):
    """In the graph and on the host, again after weights and modes have changed."""
    dataset, _, _ = make_data(tmp_path, [(64, 96), (50, 70), (64, 96)])
    network = PFNet(classes=4, max_pool_size=2, avg_pool_size=2, edge_points=4, seed=3)
    network.set_train(False)
    first = evaluate(network, dataset, make_config(batch_size=2, mosaic=False), ONE)
    kept = evaluation._compiled(network, "classes")
    assert len(kept.fixed.compile_cache) == 1  # 50x70 is padded to 64x96

    def plain(images):
        return evaluation.scorer_of(network)(images)

    host = evaluate(plain, dataset, make_config(), ONE)
    assert first["miou"] == pytest.approx(host["miou"], abs=2e-3)
    assert sum(value > 0 for value in first["iou"].values()) > 1

    network.set_train(True)
    last = network.head.conv_last[1]
    last.weight.set_data(Tensor(-last.weight.asnumpy()))
    again = evaluate(network, dataset, make_config(batch_size=2, mosaic=False), ONE)
    assert len(kept.fixed.compile_cache) == 1
    assert again["iou"] != first["iou"]
    assert again["miou"] == pytest.approx(evaluate(plain, dataset, make_config(), ONE)["miou"],
                                          abs=2e-3)  # fmt: skip


def test_the_figure_is_said_with_its_protocol(data):
    metrics = evaluate(scorer, data[0], make_config(), ONE)
    lines = protocol_lines(metrics)
    assert lines[0] == f"mIoU {metrics['miou']:.2%}: {metrics['protocol']}"
    assert protocol_lines({"loss": 0.5}) == []
