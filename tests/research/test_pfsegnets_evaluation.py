"""PFNet's evaluation: the reference's metrics and windows, known predictions, files written."""

import copy
import csv
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import Tensor
from PIL import Image
from scipy.ndimage import map_coordinates
from sklearn.metrics import fbeta_score

from model_utils.distributed import Ranks
from model_utils.errors import UserError
from model_utils.files import read_image, read_json, write_image
from model_utils.metrics.segmentation import ConfusionMatrix
from model_utils.segmentation import IGNORE
from model_utils.windows import windows
from research.pfsegnets.src import evaluation
from research.pfsegnets.src.boundary import (
    ImageBoundaryScores,
    boundary_map,
    boundary_scores,
    radius,
)
from research.pfsegnets.src.evaluation import evaluate, f_beta, protocol_lines
from research.pfsegnets.src.mosaic import Mosaic, MosaicPlan, Patch
from research.pfsegnets.src.multiscale import (
    Protocol,
    mean_logits,
    padded,
    sliding_windows,
    zoom,
)
from research.pfsegnets.src.network import PFNet
from tests.research.known_predictions import check_figures, expected_iou, run_on_two_ranks
from tests.research.pfsegnets_scorer import TABLE, make_config, make_data, make_patches, scorer
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


def test_the_references_f_scores_precisions_and_recalls(reference):
    values, _ = reference
    confusion = ConfusionMatrix(7)
    confusion.counts = np.array(values["hist"])

    def known(listed):
        return np.array([np.nan if value is None else value for value in listed])

    labelled = confusion.true_pixels > 0
    for found, key in (
        (f_beta(confusion), "f1"),
        (confusion.precision(), "precision_true"),
        (confusion.accuracy(), "recall_true"),
        (confusion.iou(), "per_class_iou"),
    ):
        expected = known(values[key])
        given = ~np.isnan(expected)
        np.testing.assert_allclose(found[given], expected[given], rtol=1e-12)
        assert (found[~given] == 0).all()
    assert f_beta(confusion)[labelled].mean() == pytest.approx(values["mean_f1"])
    scores = confusion.scores()
    assert scores["miou_present"] == pytest.approx(values["mean_iu"])
    assert scores["pixel_accuracy"] == pytest.approx(values["acc"])
    assert scores["frequency_weighted_iou"] == pytest.approx(values["fwavacc"])


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0])
def test_weighted_f_scores_are_scikit_learns(beta):
    rng = np.random.default_rng(4)
    truth, prediction = rng.integers(0, 4, (2, 500))
    confusion = ConfusionMatrix(5)
    confusion.update(truth, prediction)
    expected = fbeta_score(
        truth, prediction, beta=beta, labels=range(5), average=None, zero_division=0
    )
    np.testing.assert_allclose(f_beta(confusion, beta), expected, rtol=1e-12)


# -- windows, zooms, mirroring ------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1000, 1500), (900, 400)])
def test_the_references_windows(reference, size):
    values, _ = reference
    expected = values["sliding"][f"w{size[1]}_h{size[0]}_crop513"]
    protocol = Protocol(window=513)
    found = [
        [columns.start, rows.start, columns.stop, rows.stop]
        for rows, columns in sliding_windows(size, protocol)
    ]

    def cut(box):  # the reference's windows may end beyond a narrow image
        return [*box[:2], min(box[2], size[1]), min(box[3], size[0])]

    assert sorted(found) == sorted(cut(box) for box in expected)
    in_pixels = Protocol(window=513, overlap=513 - protocol.stride(1.0))
    assert list(sliding_windows(size, in_pixels)) == list(sliding_windows(size, protocol))


def coarse_scorer(images):
    """Logits at a quarter of the size that depend on place and content, not symmetric."""
    assert images.shape[2] % 32 == images.shape[3] % 32 == 0
    mixed = np.tensordot([[1, 2, -1], [0.5, -1, 3], [-2, 1, 1]], images, ([1], [1]))
    mixed = mixed.transpose(1, 0, 2, 3)[:, :, ::4, ::4]
    ramp = np.linspace(0, 2, mixed.shape[3])
    return (3 * mixed + ramp).astype(np.float32)


def plain_logits(image, scales, flip, window, least):
    """The reference's rule in double precision, as directly as it can be written."""
    height, width = image.shape[1:]

    def enlarged(values, size):  # aligned corners, one output pixel at a time
        rows = np.linspace(0, values.shape[1] - 1, size[0]) if size[0] > 1 else np.zeros(1)
        columns = np.linspace(0, values.shape[2] - 1, size[1]) if size[1] > 1 else np.zeros(1)
        return np.stack([
            map_coordinates(k, np.meshgrid(rows, columns, indexing="ij"), order=1, mode="nearest")
            for k in values
        ])  # fmt: skip

    def net(part):
        wanted = [max(least, -(-side // 32) * 32) for side in part.shape[1:]]
        beside = [(0, 0)] + [(0, w - s) for w, s in zip(wanted, part.shape[1:], strict=True)]
        whole = np.pad(part, beside, "symmetric")
        found = enlarged(coarse_scorer(whole[None])[0].astype(np.float64), whole.shape[1:])
        return found[:, : part.shape[1], : part.shape[2]]

    total = 0.0
    for scale in scales:
        zoomed = zoom(image, scale)
        for turn in (1, -1) if flip else (1,):
            part = np.ascontiguousarray(zoomed[:, :, ::turn])
            if window:
                side = int(window * max(scale, 1))
                step = int(np.ceil(side * (1 - 1 / 3)))
                sums, counts = np.zeros((3, *part.shape[1:])), np.zeros(part.shape[1:])
                for top in range(0, max(1, part.shape[1] - side + step), step):
                    for left in range(0, max(1, part.shape[2] - side + step), step):
                        y = max(0, min(top, part.shape[1] - side))
                        x = max(0, min(left, part.shape[2] - side))
                        box = np.s_[y : y + side, x : x + side]
                        sums[(slice(None), *box)] += net(part[(slice(None), *box)])
                        counts[box] += 1
                logits = np.stack(
                    [cv2.resize(k, (width, height), interpolation=cv2.INTER_LINEAR)
                     for k in sums / counts]
                )  # fmt: skip
            else:
                logits = enlarged(net(part), (height, width))
            total = total + logits[:, :, ::turn]
    return total / (len(scales) * (2 if flip else 1))


@pytest.mark.parametrize("size", [(40, 70), (61, 33), (9, 9), (1, 1), (1, 50)])
@pytest.mark.parametrize("window", [0, 48])
@pytest.mark.parametrize(
    ("scales", "flip", "least"),
    [((1.0,), False, 32), ((1.0,), True, 96), ((0.5, 1.0, 1.75), True, 32), ((2.5,), False, 32)],
)
def test_zooms_flips_and_windows_agree_with_a_plain_reference(size, window, scales, flip, least):
    image = np.random.default_rng(2).standard_normal((3, *size)).astype(np.float32)
    protocol = Protocol(scales, flip, window, least=least)
    logits = mean_logits(coarse_scorer, image, protocol)
    expected = plain_logits(image, scales, flip, window, least)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-4)


def test_a_zoom_is_pillows():
    """The original zooms 8-bit images before it normalises."""
    pixels = np.random.default_rng(3).integers(0, 256, (37, 50, 3)).astype(np.uint8)
    for scale, size in ((0.5, (25, 18)), (0.75, (37, 27)), (1.25, (62, 46))):
        expected = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
        found = zoom(pixels.transpose(2, 0, 1).astype(np.float32), scale)
        # Both passes of the original round.
        assert np.abs(found.transpose(1, 2, 0) - expected).max() <= 1.0


@given(st.integers(1, 100), st.integers(1, 100), st.sampled_from([32, 224]))
@settings(max_examples=50, deadline=None)
def test_padding_reflects_and_is_as_small_as_possible(height, width, least):
    images = np.random.default_rng(height * 101 + width).random((1, 3, height, width))
    whole = padded(images, least)
    np.testing.assert_array_equal(whole[:, :, :height, :width], images)
    for side, own in zip(whole.shape[2:], (height, width), strict=True):
        assert side % 32 == 0 and side >= least
        assert side == least or side - own < 32
    if whole.shape[2] > height:
        np.testing.assert_array_equal(whole[:, :, height], whole[:, :, height - 1])


def test_protocols_are_described_and_checked():
    assert Protocol.of(make_config()).describe() == "single scale, whole image"
    config = make_config(scales=[0.5, 1.25], flip=True, inference="sliding", window=768)
    text = Protocol.of(config).describe()
    for part in ("0.5, 1.25", "mirrored", "768x768 overlapping by 33%", "mean of logits"):
        assert part in text
    with pytest.raises(UserError, match="no scale"):
        Protocol.of(make_config(scales=[]))
    with pytest.raises(UserError, match="768 pixels cannot overlap by 768"):
        Protocol(window=768, overlap=768)
    assert Protocol(window=768, overlap=767).stride(1.0) == 1


def test_the_jittor_ports_pooling_needs_larger_images():
    config = make_config()
    assert Protocol.of(config).least == 32
    config.pool_style = "jittor"
    assert Protocol.of(config).least == 448
    config.point_flow = False
    config.psp_sizes = [1, 2, 3, 7]
    assert Protocol.of(config).least == 224


# -- whole images of patches --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("val/images/P0003_0_896_512_1408.png", ("val/images/P0003", (0, 896), (512, 1408))),
        ("P0003_0_896_512_1408_extra.png", ("P0003", (0, 896), (512, 1408))),
        ("top_potsdam_2_10_RGB_0_600_7_607.tif", ("top_potsdam_2_10_RGB", (0, 600), (7, 607))),
        ("area_1_2_0_40_0_40.png", ("area_1_2", (0, 40), (0, 40))),
        ("a.b_0_8_0_8.png", ("a.b", (0, 8), (0, 8))),
        ("P0003.png", None),
        ("top_potsdam_2_10.png", None),
        ("IMG_2020_01_02_03.jpg", None),
        ("P0003_0_896_512_512.png", None),
    ],
)
def test_names_of_patches(name, expected):
    patch = Patch.of(name)
    assert (patch and (patch.source, patch.rows, patch.columns)) == expected


def test_the_references_patches_cover_their_image(reference):
    """Also where its tools write the same patch twice."""
    values, _ = reference
    for key, boxes in values["split"].items():
        if boxes is not None:
            names = ["P7_{}_{}_{}_{}.png".format(*box) for box in boxes]
            height, width = (int(part[1:]) for part in key.split("_")[:2])
            (source,) = MosaicPlan(sorted(set(names))).sources
            assert source.size == (height, width)


@st.composite
def split_plans(draw):
    size = st.integers(1, 40)
    names = ["single.png", "other.png"][: draw(st.integers(0, 2))]
    for number in range(draw(st.integers(1, 5))):
        shape, window, overlap = (draw(size), draw(size)), draw(st.integers(6, 30)), 3
        names += {
            f"P{number}_{rows.start}_{rows.stop}_{columns.start}_{columns.stop}.png"
            for rows, columns in windows(shape, (window, window), (window - overlap,) * 2)
        }
    return draw(st.permutations(names))


@settings(max_examples=60, deadline=None)
@given(split_plans(), st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_mosaics_of_any_patches_are_the_plain_mean(names, seed, ranks):
    """On any number of ranks: strips, transposed or not, against whole arrays."""
    rng = np.random.default_rng(seed)
    plan = MosaicPlan(names)
    truths, sums, parts = {}, {}, {}
    for source in plan.sources:
        truths[source.name] = rng.choice([0, 1, 2, IGNORE], source.size).astype(np.uint8)
        sums[source.name] = np.zeros((3, *source.size))
    for index, patch in plan.patches.items():
        box = np.s_[slice(*patch.rows), slice(*patch.columns)]
        logits = rng.integers(-4, 5, (3, *patch.size)).astype(np.float32)
        sums[patch.source][(slice(None), *box)] += logits
        parts[index] = truths[patch.source][box], logits
    expected = np.zeros((3, 3), int)
    for name, truth in truths.items():
        known = truth != IGNORE
        np.add.at(expected, (truth[known], sums[name].argmax(axis=0)[known]), 1)

    found, seen, images = np.zeros((3, 3), int), [], 0
    for rank in range(ranks):
        mosaic = Mosaic(MosaicPlan(names), 3)
        for index in mosaic.plan.order(Ranks(rank, ranks)):
            seen.append(index)
            if index in parts:
                mosaic.add(index, *parts[index])
        mosaic.finish()
        found += mosaic.confusion.counts
        images += mosaic.images
    assert sorted(seen) == list(range(len(names)))
    assert images == len(plan.sources)
    np.testing.assert_array_equal(found, expected)


def test_the_memory_of_a_mosaic_does_not_grow_with_the_image():
    def peak(count, wide):
        boxes = [(48 * k, 48 * k + 64) for k in range(count)]
        names = ["P_0_64_{}_{}" if wide else "P_{}_{}_0_64"] * count
        names = [name.format(*box) for name, box in zip(names, boxes, strict=True)]
        mosaic = Mosaic(MosaicPlan(names), 8)
        truth, logits = np.zeros((64, 64), np.uint8), np.zeros((8, 64, 64), np.float32)
        tracemalloc.start()
        for index in range(count):
            mosaic.add(index, truth, logits)
        mosaic.finish()
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(3, False)  # what is allocated once only
    for wide in (False, True):
        assert peak(150, wide) < 1.2 * peak(5, wide)


def test_patches_that_disagree_or_lie_about_their_size_are_reported(caplog):
    names = ["P_0_8_0_8.png", "P_4_12_0_8.png", "P_8_16_0_8.png"]
    logits = np.zeros((2, 8, 8), np.float32)
    logits[1] = 1
    mosaic = Mosaic(MosaicPlan(names), 2)
    with caplog.at_level("WARNING", "zoo"):
        mosaic.add(0, np.zeros((8, 8), np.uint8), logits)
        mosaic.add(1, np.ones((8, 8), np.uint8), logits)
        mosaic.finish()
    assert "disagree about the true class" in caplog.text and "row 4" in caplog.text
    # Rows 4 to 7 keep the earlier truth, 0.
    np.testing.assert_array_equal(mosaic.confusion.counts, [[0, 64], [0, 32]])
    caplog.clear()
    mosaic = Mosaic(MosaicPlan(names), 2)
    with caplog.at_level("WARNING", "zoo"):
        mosaic.add(2, np.zeros((8, 9), np.uint8), np.zeros((2, 8, 9), np.float32))
    assert "named 8x8 (rows x columns) has 8x9" in caplog.text
    assert mosaic.confusion.counts.sum() == 0


def test_whole_images_of_patches_score_as_the_images_do(tmp_path):
    patches, whole = make_patches(tmp_path)
    metrics = evaluate(scorer, patches, make_config(), ONE)
    expected = evaluate(scorer, whole, make_config(), ONE)
    mosaic = metrics["mosaic"]
    assert "mosaic" not in expected and mosaic["images"] == 3
    for key in ("miou", "miou_present", "pixel_accuracy", "iou", "precision", "mean_f"):
        assert mosaic[key] == expected[key], key
    # What lies in several patches counts several times patch by patch.
    assert metrics["iou"] != mosaic["iou"]
    lines = protocol_lines(metrics)
    assert lines[0].startswith("mIoU, patch by patch, ")
    assert sum(f"{mosaic['miou']:.2%}" in line and "3 whole images" in line for line in lines) == 1
    off = evaluate(scorer, patches, make_config(mosaic=False), ONE)
    assert "mosaic" not in off and off["iou"] == metrics["iou"]
    resized = make_config(resize=64)
    patches.resize = 64
    assert "mosaic" not in evaluate(scorer, patches, resized, ONE)


def test_names_that_only_look_like_patches_give_no_whole_images(tmp_path, caplog):
    """Such as dates; a mean IoU of 0 over no image would look like a figure."""
    dataset, _, _ = make_data(tmp_path)
    names = [f"site_{10 + day}_12_20_26" for day in range(len(dataset))]
    dataset.name = names.__getitem__
    metrics = evaluate(scorer, dataset, make_config(), ONE)
    assert "mosaic" not in metrics and "left out of the whole images" in caplog.text
    assert not any("whole images" in line for line in protocol_lines(metrics))


# -- figures ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("mosaic", [False, True])
@pytest.mark.parametrize("scales", [[1.0], [1.0, 1.0]])
def test_known_predictions_give_known_figures(data, batch_size, mosaic, scales):
    """Sizes that are no multiple of 32 are padded and cut again."""
    dataset, truths, predictions = data
    config = make_config(batch_size=batch_size, scales=scales, mosaic=mosaic)
    metrics = evaluate(scorer, dataset, config, ONE)
    check_figures(metrics, TABLE.names, truths, predictions)
    assert "3 sizes 1x1 to 96x64" in metrics["protocol"]


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
    for name in TABLE.names:
        (line,) = (line for line in lines if line.split()[0] == name)
        scores = [metrics[key][name] for key in ("iou", "precision", "recall", "f_score")]
        assert line.split()[1:] == [f"{score:.2%}" for score in scores]
    assert protocol_lines({"loss": 0.5}) == []


# -- ranks --------------------------------------------------------------------------------------


def test_two_ranks_find_what_one_finds(tmp_path):
    run_on_two_ranks("pfsegnets_scorer.py", tmp_path)
    for kind, make in (("images", make_data), ("patches", make_patches)):
        dataset = make(tmp_path / "one" / kind)[0]
        one = evaluate(scorer, dataset, make_config(pictures=3), ONE, tmp_path / f"one_{kind}")
        for rank in range(2):
            assert read_json(tmp_path / f"{kind}{rank}.json") == one
        # The first rank has written everybody's images.
        alone = tmp_path / f"one_{kind}"
        names = sorted(path.relative_to(alone) for path in alone.rglob("*_c*.png"))
        assert len(names) == 2 * 3 + (2 * 3 if kind == "patches" else 0)
        for name in names:
            two = tmp_path / f"out_{kind}" / name
            assert two.read_bytes() == (alone / name).read_bytes(), name


# -- files --------------------------------------------------------------------------------------


def test_what_is_written_is_what_was_measured(data, tmp_path):
    dataset, _, predictions = data
    metrics = evaluate(scorer, dataset, make_config(pictures=3), ONE, tmp_path)
    for index in (0, 3, 6):
        classes = read_image(tmp_path / f"predictions/P{index:04d}_classes.png", 0)
        np.testing.assert_array_equal(classes, predictions[index])
    assert len(list((tmp_path / "predictions").glob("*_classes.png"))) == 3
    with open(tmp_path / "classes.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["class"] for row in rows] == list(TABLE.names)
    for row in rows:
        assert float(row["iou"]) == pytest.approx(metrics["iou"][row["class"]], abs=1e-6)
    assert 0 < metrics["boundary_f"] < 1
    by_image = metrics["boundary_f_by_image"]
    assert list(by_image) == ["0.0005", "0.001875", "0.00375", "0.005"]
    expected = np.zeros(4)
    for index in range(len(dataset)):
        truth = dataset.read(index)[1]
        expected += boundary_scores(truth, predictions[index], 4, [0.005])[0, :, 2]
    np.testing.assert_allclose(
        list(by_image["0.005"]["classes"].values()), expected / len(dataset), rtol=1e-12
    )
    assert any("0.5 % of the diagonal" in line for line in protocol_lines(metrics))


def test_whole_images_are_written(tmp_path):
    patches, whole = make_patches(tmp_path)
    evaluate(scorer, whole, make_config(pictures=3), ONE, tmp_path / "whole_out")
    evaluate(scorer, patches, make_config(pictures=2), ONE, tmp_path / "out")
    folder = tmp_path / "out/whole_images/images"
    # The first and the last of P0002, P0010, area_1_2.
    assert sorted(path.name for path in folder.glob("*_classes.png")) == [
        "P0002_classes.png", "area_1_2_classes.png"
    ]  # fmt: skip
    for name, own in (("P0002", "P0001"), ("area_1_2", "P0002")):
        for kind in ("classes", "colours"):
            found = read_image(folder / f"{name}_{kind}.png", 0)
            expected = read_image(tmp_path / f"whole_out/predictions/{own}_{kind}.png", 0)
            np.testing.assert_array_equal(found, expected)


def test_whole_images_are_written_below_the_output_only(tmp_path):
    """Images that lists name by absolute paths have absolute names."""
    patches, _ = make_patches(tmp_path / "data")
    patches._root = None
    assert Path(patches.name(0)).is_absolute()
    before = sorted((tmp_path / "data").rglob("*"))
    evaluate(scorer, patches, make_config(pictures=2), ONE, tmp_path / "out")
    assert sorted((tmp_path / "data").rglob("*")) == before
    assert len(list((tmp_path / "out/whole_images").rglob("*_classes.png"))) == 2


def test_resized_images_are_drawn_at_the_size_they_were_measured(data, tmp_path):
    dataset = copy.copy(data[0])
    dataset.resize = 64
    metrics = evaluate(scorer, dataset, make_config(resize=64, pictures=99), ONE, tmp_path)
    assert "64x64," in metrics["protocol"]
    assert read_image(tmp_path / "predictions/P0002_classes.png", 0).shape == (64, 64)
    assert read_image(tmp_path / "predictions/P0002.png").std() > 10
