"""SANet's evaluation: the reference's test-time scores, known predictions, files written."""

import csv
import re
import zipfile
from pathlib import Path

import cv2
import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import Tensor, nn
from sklearn.metrics import top_k_accuracy_score

from model_utils.distributed import Ranks
from model_utils.errors import UserError
from model_utils.files import read_image, read_json, write_image
from model_utils.metrics.segmentation import ConfusionMatrix
from model_utils.segmentation import IGNORE
from model_utils.torch_counterpart import pytorch_name
from model_utils.windows import resize_aligned
from research.sanet.src import evaluation
from research.sanet.src.classes import CAMVID, CITYSCAPES, CITYSCAPES_TRAIN_IDS
from research.sanet.src.evaluation import evaluate, evaluate_classifier, protocol_lines
from research.sanet.src.multiscale import ExpScores, Protocol, exp_scores, zoom
from research.sanet.src.network import SANetNetwork
from research.sanet.src.submission import Submission, check_submission
from tests.research.known_predictions import check_figures, expected_iou, run_on_two_ranks
from tests.research.sanet_scorer import TABLE, make_config, make_data, scorer
from tests.seeded import load_fixture, network_input, parameter

ONE = Ranks()


def reference_network(classes=19, gain=0.65):
    network = SANetNetwork("S", classes)
    for weights in network.get_parameters():
        value = parameter(pytorch_name(weights.name), weights.shape, gain)
        weights.set_data(Tensor(value))
    return network.set_train(False)


# -- several zooms ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference():
    about, values = load_fixture("SANet_S_testtime")
    image = network_input("ms_image", about["inputs"]["ms_image"])[0]
    return about, values, image, evaluation.scorer_of(reference_network())


@pytest.mark.parametrize("shift", [0, 500])
@pytest.mark.parametrize("case", ["single", "single_flip", "half", "upper", "ms", "ms_flip"])
def test_the_references_scores(reference, case, shift):
    """Also where exp(logit) is far beyond single precision."""
    about, values, image, network = reference
    options = about["options"]
    scales, flip = about["cases"][case]
    protocol = Protocol(
        tuple(scales), flip, tuple(options["crop_size"]), base_size=options["base_size"]
    )
    scores = exp_scores(lambda images: network(images) + np.float32(shift), image, protocol)
    tolerance = 1e-5 if not shift else 1e-4  # logits near 500 have fewer decimals
    np.testing.assert_allclose(
        scores.log()[:, ::4, ::4] - shift, values[case][0], rtol=0, atol=tolerance
    )
    agree = (scores.classes() == values[f"{case}_argmax"][0]).mean()
    assert agree >= 0.999


def plain_scores(network, image, scales, flip, window, base_size):
    """The reference's rule in double precision, as directly as it can be written."""
    height, width = image.shape[1:]
    total = 0.0
    for scale in scales:
        zoomed = zoom(image, base_size, scale)
        rows, columns = zoomed.shape[1:]

        def logits(part):
            sums = resize_aligned(network(part[None])[0].astype(np.float64), part.shape[1:])
            if flip:
                mirrored = network(np.ascontiguousarray(part[None, :, :, ::-1]))[0]
                other = resize_aligned(mirrored.astype(np.float64), part.shape[1:])
                sums = (sums + other[:, :, ::-1]) / 2
            return np.exp(sums)

        if scale > 1:
            sums, counts = 0.0, np.zeros((rows, columns))
            for row in range(-(-max(0, rows - window[0]) // window[0]) + 1):
                for column in range(-(-max(0, columns - window[1]) // window[1]) + 1):
                    bottom = min(row * window[0] + window[0], rows)
                    right = min(column * window[1] + window[1], columns)
                    top, left = max(bottom - window[0], 0), max(right - window[1], 0)
                    part = logits(np.ascontiguousarray(zoomed[:, top:bottom, left:right]))
                    whole = np.zeros((len(part), rows, columns))
                    whole[:, top:bottom, left:right] = part
                    sums = sums + whole
                    counts[top:bottom, left:right] += 1
            scores = sums / counts
        else:
            scores = logits(zoomed)
        total = total + resize_aligned(scores, (height, width))
    return total


def coarse_scorer(images):
    """Logits at an eighth of the size that depend on place and content, not symmetric."""
    mixed = np.tensordot([[1, 2, -1], [0.5, -1, 3], [-2, 1, 1]], images, ([1], [1]))
    mixed = mixed.transpose(1, 0, 2, 3)[:, :, ::8, ::8]
    ramp = np.linspace(0, 2, mixed.shape[3])
    return (3 * mixed + ramp).astype(np.float32)


@pytest.mark.parametrize("size", [(40, 56), (61, 33), (9, 9), (1, 1), (1, 50)])
@pytest.mark.parametrize("flip", [False, True])
def test_zooms_flips_and_windows_agree_with_a_plain_reference(size, flip):
    image = np.random.default_rng(2).standard_normal((3, *size)).astype(np.float32)
    protocol = Protocol((0.5, 1.0, 1.75, 2.5), flip, (32, 40))
    scores = exp_scores(coarse_scorer, image, protocol)
    expected = plain_scores(coarse_scorer, image, protocol.scales, flip, (32, 40), max(size))
    np.testing.assert_allclose(scores.log(), np.log(expected), rtol=0, atol=2e-4)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1.0, 30.0, 3000.0]),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_scores_of_any_magnitude(seed, magnitude, source, target):
    """Resizing and adding exp(logits) in logarithms of double precision."""
    rng = np.random.default_rng(seed)
    first, second = (
        (magnitude * rng.standard_normal((3, *source))).astype(np.float32) for _ in range(2)
    )
    scores = ExpScores.of_logits(first).resized(target) + ExpScores.of_logits(second).resized(
        target
    )
    assert np.isfinite(scores.values).all() and (scores.values.max(axis=0) > 0).all()

    def log_resized(logits):
        # Interpolation weights of every target pixel, from resized unit pictures.
        count = source[0] * source[1]
        units = np.eye(count).reshape(count, *source)
        with np.errstate(divide="ignore"):
            weights = np.log(resize_aligned(units, target).reshape(count, -1))
        terms = logits.reshape(3, count, 1).astype(np.float64) + weights
        return np.logaddexp.reduce(terms, axis=1).reshape(3, *target)

    expected = np.logaddexp(log_resized(first), log_resized(second))
    # What is e^-80 of a pixel's best class may be lost, nothing else.
    seen = expected > expected.max(axis=0) - 80
    gap = np.abs(scores.log() - expected)[seen]
    assert gap.max() < 1e-4 + 2e-6 * magnitude


def test_a_zoom_has_the_references_size():
    image = np.zeros((3, 360, 480), np.float32)
    assert zoom(image, 0, 0.75).shape == (3, 270, 360)
    assert zoom(image, 2048, 1.25).shape == (3, 1920, 2560)
    assert zoom(image.transpose(0, 2, 1), 481, 0.5).shape == (3, 241, 181)
    assert zoom(image[:, :1], 0, 0.01).shape == (3, 1, 5)


def test_protocols_are_described_and_checked():
    assert Protocol.of(make_config()).describe() == "single scale, whole image"
    config = make_config(scales=[0.5, 1.25], flip=True, window_height=128, window_width=256)
    config.data.base_size = 2048
    text = Protocol.of(config).describe()
    for part in ("0.5, 1.25", "2048", "mirrored", "256x128"):
        assert part in text
    with pytest.raises(UserError, match="64x0 has one side"):
        Protocol.of(make_config(window_height=64))
    with pytest.raises(UserError, match="scales is empty"):
        Protocol.of(make_config(scales=[]))


# -- figures ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("scales", [[1.0], [1.0, 1.0]])
def test_known_predictions_give_known_figures(data, batch_size, scales):
    dataset, truths, predictions = data
    config = make_config(batch_size=batch_size, scales=scales)
    metrics = evaluate(scorer, dataset, config, ONE)
    check_figures(metrics, TABLE.names, truths, predictions)
    assert 0 < metrics["boundary_f"] < 1
    assert "3 sizes 1x1 to 36x24" in metrics["protocol"]
    floats = {"miou", "miou_present", "pixel_accuracy", "mean_accuracy", "boundary_f"}
    assert all(type(metrics[name]) is float for name in floats)


def test_the_figure_is_said_with_its_protocol(data):
    metrics = evaluate(scorer, data[0], make_config(), ONE)
    lines = protocol_lines(metrics)
    assert lines[0] == f"mIoU {metrics['miou']:.2%}: {metrics['protocol']}"
    assert [line.split()[0] for line in lines[2:]] == list(TABLE.names)
    assert protocol_lines({"top1": 0.5}) == []


def test_nothing_but_ignored_pixels(tmp_path):
    dataset, _, _ = make_data(tmp_path, [(12, 18)] * 4)
    dataset.pairs = dataset.pairs[3:]
    metrics = evaluate(scorer, dataset, make_config(pictures=4), ONE, tmp_path / "out")
    assert metrics["miou"] == metrics["boundary_f"] == metrics["pixel_accuracy"] == 0.0
    assert "(4 without a labelled pixel)" in metrics["protocol"]
    assert (tmp_path / "out" / "predictions.png").is_file()


def test_random_changes_are_left_out_on_the_training_split(data):
    dataset, truths, predictions = data

    def spoil(*parts):
        raise AssertionError("evaluation must not augment")

    dataset.augmentation = spoil
    try:
        metrics = evaluate(scorer, dataset, make_config(), ONE)
    finally:
        dataset.augmentation = None
    assert metrics["miou"] == pytest.approx(expected_iou(truths, predictions).mean())


def test_a_class_number_outside_the_table_is_refused(data):
    dataset = data[0]
    with pytest.raises(UserError, match="tells 6 classes apart, the data has 4"):
        evaluate(lambda x: np.pad(scorer(x), ((0, 0), (0, 2), (0, 0), (0, 0))), dataset,
                 make_config(), ONE)  # fmt: skip
    with pytest.raises(UserError, match="tells 19 classes apart, the data has 4"):
        evaluate(SANetNetwork("S", 19), dataset, make_config(), ONE)


def test_a_network_and_its_logits_give_the_same_figures(tmp_path):
    """In the graph and on the host, sizes fixed and free, again after a training step's modes."""
    dataset, _, _ = make_data(tmp_path / "data", [(48, 64), (48, 64), (33, 70), (48, 64)])
    network = reference_network(4, 1.0)
    first = evaluate(network, dataset, make_config(batch_size=2), ONE)
    kept = evaluation._compiled(network, "classes")
    assert len(kept.fixed.compile_cache) == len(kept.free.compile_cache) == 1
    host = evaluate(evaluation.scorer_of(network), dataset, make_config(), ONE)
    assert first["miou"] == pytest.approx(host["miou"], abs=1e-3)
    assert first["boundary_f"] == pytest.approx(host["boundary_f"], abs=5e-3)
    # The network tells at least two classes apart here, so that the comparison means something.
    assert sum(value > 0 for value in first["iou"].values()) > 1

    network.set_train(True)
    for weights in network.trainable_params():
        if weights.name.startswith("final_layer"):
            weights.set_data(Tensor(-weights.asnumpy()))
    again = evaluate(network, dataset, make_config(batch_size=2), ONE)
    assert evaluation._compiled(network, "classes") is kept
    assert len(kept.fixed.compile_cache) == len(kept.free.compile_cache) == 1
    # New weights are seen, and running statistics are used, not the batch's.
    assert again["iou"] != first["iou"]
    host = evaluate(evaluation.scorer_of(network), dataset, make_config(), ONE)
    assert again["miou"] == pytest.approx(host["miou"], abs=1e-3)


def test_the_auxiliary_head_is_measured_when_results_are_written(tmp_path):
    dataset, _, _ = make_data(tmp_path / "data", [(48, 64)] * 3)
    network = reference_network(4, 1.0)
    metrics = evaluate(network, dataset, make_config(pictures=0), ONE, tmp_path)
    main, aux = ConfusionMatrix(4), ConfusionMatrix(4)
    network.set_train(False)
    for index in range(3):
        image, label, _ = dataset.sample(index, np.random.default_rng(0))
        outputs = network(Tensor(image[None]))
        for confusion, logits in ((aux, outputs[0]), (main, outputs[1])):
            sized = resize_aligned(logits.asnumpy()[0], label.shape)
            confusion.update(label, sized.argmax(axis=0))
    assert metrics["miou_aux"] == pytest.approx(aux.mean_iou(), abs=1e-3)
    assert metrics["miou"] == pytest.approx(main.mean_iou(), abs=1e-3)
    assert metrics["miou"] != metrics["miou_aux"]


class Dense(nn.Cell):
    """A classifier that the test can compute itself."""

    def __init__(self, weight):
        super().__init__()
        self.weight = ms.Parameter(Tensor(weight), name="w")

    def construct(self, images):
        return ms.ops.matmul(images.reshape(images.shape[0], -1), self.weight)


class Images:
    def __init__(self, classes):
        rng = np.random.default_rng(8)
        self.images = rng.standard_normal((23, 3, 2, 2)).astype(np.float32)
        self.numbers = rng.integers(0, classes, 23).astype(np.int32)

    def __len__(self):
        return len(self.images)

    def name(self, index):
        return f"image {index}"

    def sample(self, index, rng):
        return self.images[index], self.numbers[index]


def test_top_one_and_top_five():
    weight = np.random.default_rng(1).standard_normal((12, 9)).astype(np.float32)
    images = Images(9)
    config = make_config(batch_size=4)
    metrics = evaluate_classifier(Dense(weight), images, config, ONE)
    logits = images.images.reshape(23, -1) @ weight
    for name, count in (("top1", 1), ("top5", 5)):
        expected = top_k_accuracy_score(images.numbers, logits, k=count, labels=range(9))
        assert metrics[name] == pytest.approx(expected)
    broken = evaluate_classifier(Dense(weight * np.nan), images, config, ONE)
    assert (broken["top1"], broken["top5"]) == (0, 0)
    images.numbers[7] = 9
    with pytest.raises(UserError, match="class number 9, the network only 9"):
        evaluate_classifier(Dense(weight), images, config, ONE)


# -- ranks --------------------------------------------------------------------------------------


def test_two_ranks_find_what_one_finds(data, tmp_path):
    dataset, _, predictions = data
    run_on_two_ranks("sanet_scorer.py", tmp_path)
    one = evaluate(scorer, dataset, make_config(), ONE)
    found = [read_json(tmp_path / f"metrics{rank}.json") for rank in range(2)]
    for metrics in found:
        assert {name: metrics[name] for name in one} == one
    # The first rank has written everybody's images.
    assert found[0]["submitted"] == len(dataset)
    for index, prediction in enumerate(predictions):
        name = f"city_000000_{index:06d}_photo"
        written = read_image(tmp_path / "out/predictions" / f"{name}_classes.png", 0)
        np.testing.assert_array_equal(written, prediction)
        ids = read_image(tmp_path / "out/submission" / f"{name}.png", 0)
        np.testing.assert_array_equal(ids, np.array(TABLE.ids)[prediction])


# -- files --------------------------------------------------------------------------------------


def test_what_is_written_is_what_was_measured(data, tmp_path):
    dataset, truths, predictions = data
    metrics = evaluate(scorer, dataset, make_config(pictures=3), ONE, tmp_path)
    drawn = sorted((tmp_path / "predictions").glob("*_classes.png"))
    chosen = [int(path.stem.split("_")[2]) for path in drawn]
    assert chosen == [0, 3, 6]
    for index in chosen:
        stem = tmp_path / "predictions" / f"city_000000_{index:06d}_photo"
        classes = read_image(f"{stem}_classes.png", 0)
        np.testing.assert_array_equal(classes, predictions[index])
        colours = read_image(f"{stem}_colours.png")
        np.testing.assert_array_equal(colours, TABLE.colours[predictions[index]])
        overview = read_image(f"{stem}.png")
        assert overview.shape[1] >= 4 * classes.shape[1]
    with open(tmp_path / "classes.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["class"] for row in rows] == list(TABLE.names)
    for row in rows:
        assert float(row["iou"]) == pytest.approx(metrics["iou"][row["class"]], abs=1e-6)
    assert sum(int(row["true_pixels"]) for row in rows) == sum((t != IGNORE).sum() for t in truths)
    text = (tmp_path / "classes.txt").read_text(encoding="utf-8").splitlines()
    assert f"{100 * metrics['iou']['road']:.2f} %" in text[1]
    for name in ("predictions.png", "legend.png", "confusion_matrix.png"):
        assert read_image(tmp_path / name).std() > 10, name


def test_the_error_panel_shows_the_errors(data, tmp_path):
    dataset, truths, predictions = data
    evaluate(scorer, dataset, make_config(pictures=1), ONE, tmp_path)
    picture = read_image(tmp_path / "predictions" / "city_000000_000000_photo.png")
    red = (picture == (214, 39, 40)).all(axis=2).sum()
    known = truths[0] != IGNORE
    assert red == (known & (truths[0] != predictions[0])).sum()


def test_no_pictures_when_none_are_wanted_and_all_when_many_are(data, tmp_path):
    dataset = data[0]
    evaluate(scorer, dataset, make_config(pictures=0), ONE, tmp_path / "none")
    assert not (tmp_path / "none" / "predictions").exists()
    assert (tmp_path / "none" / "classes.csv").is_file()
    evaluate(scorer, dataset, make_config(pictures=1000), ONE, tmp_path / "all")
    assert len(list((tmp_path / "all" / "predictions").glob("*_classes.png"))) == len(dataset)


def test_images_with_one_name_do_not_overwrite_each_other(tmp_path):
    dataset, _, predictions = make_data(tmp_path, [(8, 9), (9, 8)], name="{:d}/same.png")
    evaluate(scorer, dataset, make_config(pictures=2), ONE, tmp_path / "out")
    for index, prediction in enumerate(predictions):
        path = tmp_path / "out/predictions" / f"{index:06d}_same_classes.png"
        np.testing.assert_array_equal(read_image(path, 0), prediction)


# -- submission ---------------------------------------------------------------------------------


def test_data_without_masks_allows_only_a_submission(tmp_path, caplog):
    dataset, _, predictions = make_data(tmp_path, [(8, 16)] * 3, masks=False)
    with pytest.raises(UserError, match="none of the 3 images has a mask.*--submission"):
        evaluate(scorer, dataset, make_config(), ONE, tmp_path / "out")
    with pytest.raises(UserError, match="none of the 3 images has a mask"):
        evaluate(scorer, dataset, make_config(submission=True), ONE)  # nowhere to write
    metrics = evaluate(
        scorer, dataset, make_config(submission=True, pictures=1), ONE, tmp_path / "out"
    )
    assert set(metrics) == {"submission", "submitted", "submission_faults"}
    assert metrics["submitted"] == 3
    # These images are smaller than the server's; that is said and nothing else is wrong.
    assert metrics["submission_faults"] == 3
    assert "3 faults" in protocol_lines(metrics)[0]
    assert not check_submission(
        tmp_path / "out/submission", [dataset.name(i) for i in range(3)], (8, 16)
    )
    with zipfile.ZipFile(metrics["submission"]) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == [f"city_000000_{i:06d}_photo.png" for i in range(3)]
        for name, prediction in zip(sorted(archive.namelist()), predictions, strict=True):
            ids = cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), -1)
            assert ids.dtype == np.uint8 and ids.ndim == 2
            np.testing.assert_array_equal(ids, np.array(TABLE.ids)[prediction])
    assert not (tmp_path / "out" / "confusion_matrix.png").exists()


def test_a_submission_needs_label_numbers(data, tmp_path):
    with pytest.raises(UserError, match="label numbers"):
        Submission(tmp_path, CAMVID)


@pytest.mark.parametrize("table", [CITYSCAPES, CITYSCAPES_TRAIN_IDS])
def test_every_class_has_its_label_number_and_no_class_is_zero(tmp_path, table):
    labels = np.array([[*range(19), IGNORE]], np.uint8)
    dataset, _, _ = make_data(tmp_path, [(1, 1)])
    submission = Submission(tmp_path / "out", table)
    submission.add(0, dataset, labels, labels)
    written = read_image(tmp_path / "out/submission/city_000000_000000_photo.png", 0)
    # The official numbers of the 19 classes, in their training order.
    assert written[0].tolist() == [
        7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33, 0
    ]  # fmt: skip


@pytest.fixture
def valid(tmp_path):
    """A submission of three images in the server's format, but small."""
    images = [f"bonn/bonn_{n:06d}_000019_leftImg8bit.png" for n in range(3)]
    for image in images:
        write_image(tmp_path / Path(image).name, np.full((4, 8), 7, np.uint8))
    return tmp_path, images


def test_a_valid_submission_has_no_fault(valid):
    folder, images = valid
    assert check_submission(folder, images, (4, 8)) == []
    # Subfolders and other endings are allowed, as long as each image has one file.
    (folder / "bonn").mkdir()
    old = folder / Path(images[1]).name
    old.rename(folder / "bonn" / "bonn_000001_000019_pred_labelIds.png")
    assert check_submission(folder, images, (4, 8)) == []


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "bonn_000000_000019_leftImg8bit.png").unlink(), "has no prediction"),
        (lambda f: write_image(f / "bonn_000000_000019_x.png", np.full((4, 8), 7, np.uint8)),
         "has 2 predictions"),
        (lambda f: write_image(f / "bonn_000009_000019_x.png", np.full((4, 8), 7, np.uint8)),
         "belongs to none of the 3 images"),
        (lambda f: write_image(f / "result.png", np.full((4, 8), 7, np.uint8)), "is not named"),
        (lambda f: (f / "notes.txt").write_text("x"), "is not named"),
        (lambda f: write_image(f / "bonn_000000_000019_leftImg8bit.png",
                               np.full((4, 7), 7, np.uint8)), "4x7 pixels .* instead of 4x8"),
        (lambda f: write_image(f / "bonn_000000_000019_leftImg8bit.png",
                               np.full((4, 8, 3), 7, np.uint8)), "mode RGB"),
        (lambda f: write_image(f / "bonn_000000_000019_leftImg8bit.png",
                               np.full((4, 8), 7, np.uint16)), "mode I;16"),
        (lambda f: write_image(f / "bonn_000000_000019_leftImg8bit.png",
                               np.full((4, 8), 34, np.uint8)), "holds 34, but"),
        (lambda f: write_image(f / "bonn_000000_000019_leftImg8bit.png",
                               np.full((4, 8), 255, np.uint8)), "holds 255, but"),
        (lambda f: write_image(f / "bonn_000000_000019_leftImg8bit.png",
                               np.full((4, 8), 5, np.uint8)), "never scored"),
        (lambda f: (f / "bonn_000000_000019_leftImg8bit.png").write_bytes(b"\x89PNG\r\n\x1a\n"),
         "cannot be decoded"),
        (lambda f: (f / "bonn_000000_000019_leftImg8bit.png").write_bytes(
            cv2.imencode(".bmp", np.full((4, 8), 7, np.uint8))[1].tobytes()), "BMP file"),
    ],
)  # fmt: skip
def test_every_fault_has_one_sentence(valid, spoil, words):
    folder, images = valid
    spoil(folder)
    faults = check_submission(folder, images, (4, 8))
    assert len(faults) == 1, faults
    assert re.search(words, faults[0]) and faults[0].endswith("."), faults


def test_a_check_needs_a_folder_and_images(valid):
    with pytest.raises(UserError, match="list of images is empty"):
        check_submission(valid[0], [])
    with pytest.raises(UserError, match="does not exist"):
        check_submission(valid[0] / "nowhere", valid[1])


def test_equal_submissions_are_equal_archives(tmp_path):
    dataset, _, predictions = make_data(tmp_path, [(8, 16)] * 2)
    contents = []
    for name in ("a", "b"):
        submission = Submission(tmp_path / name, TABLE)
        for index in (1, 0) if name == "a" else (0, 1):
            submission.add(index, dataset, predictions[index], predictions[index])
        contents.append(Path(submission.finish()["submission"]).read_bytes())
    assert contents[0] == contents[1]
