"""SANet's tools against the published figures, the reference's fixtures and NumPy."""

import csv
import json

import cv2
import mindspore as ms
import numpy as np
import pytest

from model_utils import checkpoint
from model_utils.errors import UserError
from model_utils.files import read_image, write_image
from model_utils.gradients import LayerGradients, effective_receptive_field, find_layer, grad_cam
from model_utils.receptive_field import chain
from model_utils.segmentation import IGNORE
from model_utils.segmenting import draw_segmentation, to_classes
from model_utils.windows import resize_aligned
from research.sanet.src.api import SANet
from research.sanet.src.classes import CAMVID, CITYSCAPES
from research.sanet.src.config import SANetConfig, SpeedConfig
from research.sanet.src.network import SANetNetwork
from research.sanet.src.prediction import Prediction
from research.sanet.src.task import SANetTask
from research.sanet.src.tools.boundary import boundary, boundary_map, class_boundaries
from research.sanet.src.tools.common import ascii_name, ascii_names
from research.sanet.src.tools.complexity import complexity, parse_size, sanet_complexity
from research.sanet.src.tools.heatmap import class_numbers, heat_maps, heatmap, logit_heat_map
from research.sanet.src.tools.receptive_field import last_of, sanet_fields, squares
from research.sanet.src.tools.speed import Timing, cases, durations, measure
from research.sanet.src.tools.video import segment_video, video
from tests.seeded import load_fixture

# Of the specification: parameters used in inference and in training; multiply-adds in G of the
# prediction build at three sizes, and with the heads at the first.
PUBLISHED = {
    "S": (8_264_820, 8_377_384, 69.78, 17.45, 23.06, 71.60),
    "M": (11_901_428, 12_013_992, 103.60, 25.90, 34.23, 105.42),
    "L": (17_957_620, 18_070_184, 171.25, 42.81, 56.52, 173.07),
}
MODULES = {
    "S": {
        "stom": 10_272, "layer1": 37_120, "layer2": 131_712, "layer3": 525_568,
        "layer4": 525_568, "layer5": 2_099_712, "layer6": 920_576, "dp1": 451_456,
        "dp2": 295_424, "decoder": 106_496, "final_layer": 38_355, "compression": 33_024,
        "down4": 147_712, "down5": 443_136, "seghead_extra": 75_347, "seghead_d": 37_217,
        # The published 2,764,929 hold four units that are never used.
        "spp": 2_764_929 - 4 * (2 * 512 + 512 * 128),
    },
    "M": {"layer1": 55_680, "layer2": 205_696, "layer3": 820_992, "layer4": 2_593_536,
          "layer5": 3_280_384},
    "L": {"layer4": 7_911_168, "dp1": 746_880, "dp2": 738_560},
}  # fmt: skip
# Blocks of layer1, layer2 = layer3, layer4, layer5; dilations of both detail paths.
BLOCKS = {
    "S": ((2, 2, 2, 2), (1, 2, 5), (7, 13)),
    "M": ((3, 3, 9, 3), (1, 2, 5), (7, 13)),
    "L": ((3, 3, 27, 3), (1, 2, 5, 7, 13), (1, 2, 5, 7, 13)),
}


@pytest.fixture(scope="module")
def network():
    return SANetNetwork("S", 11, seed=4).set_train(False)


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    """A checkpoint with random weights."""
    path = tmp_path_factory.mktemp("weights") / "random.ckpt"
    arrays = {parameter.name: parameter.asnumpy() for parameter in network.get_parameters()}
    checkpoint.save(path, arrays, network="sanet")
    return path


@pytest.fixture
def config(weights):
    made = SANetConfig(device_target="CPU", checkpoint_path=str(weights))
    made.data.format = "camvid"
    made.infer.backend = "mindspore"
    return made


@pytest.fixture(scope="module")
def model(weights):
    made = SANetConfig()
    made.data.format = "camvid"
    return SANet.from_checkpoint(weights, "mindspore", made)


def photo(height=96, width=128, seed=0):
    """An image with areas and texture."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int64)
    return np.clip(image + rng.integers(-20, 20, image.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("variant", PUBLISHED)
def test_complexity_is_the_published_one(variant):
    inference, training, full, half, camvid, heads = PUBLISHED[variant]
    made = SANetNetwork(variant, 19)
    counted = sanet_complexity(made, 1024, 2048, heads=False)
    assert counted.used == inference
    assert counted.multiply_adds / 1e9 == pytest.approx(full, abs=0.006)
    if variant == "S":
        sizes = {(512, 1024): half, (720, 960): camvid}
        for size, published in sizes.items():
            found = sanet_complexity(made, *size, heads=False).multiply_adds / 1e9
            assert found == pytest.approx(published, abs=0.006)
    with_heads = sanet_complexity(made, 1024, 2048, heads=True)
    assert with_heads.multiply_adds / 1e9 == pytest.approx(heads, abs=0.006)
    assert with_heads.used == with_heads.parameters == training
    rows = with_heads.modules().layers
    assert {name: rows[name].parameters for name in MODULES[variant]} == MODULES[variant]


def windows_of(variant):
    """Kernel, stride and dilation of every convolution on both paths, by the specification."""
    (first, middle, fourth, fifth), short, long = BLOCKS[variant]
    stem = [(3, 2, 1)] * 2 + [(3, 1, 1)] * 2 * first
    stem += [(3, 2, 1)] + [(3, 1, 1)] * (2 * middle - 1) + [(3, 1, 1)] * 2 * middle
    deep = [(3, 2, 1)] + [(3, 1, 1)] * (2 * fourth - 1)
    deeper = [(3, 2, 1)] + [(3, 1, 1)] * (2 * fifth - 1)
    last = [(1, 1, 1), (3, 2, 1), (1, 1, 1)]
    dilated = [(3, 1, dilation) for dilation in short]
    return {
        "layer3": ("deep path", stem),
        "layer4": ("deep path", stem + deep),
        "layer6": ("deep path", stem + deep + deeper + last),
        "dp1": ("detail path", stem + dilated),
        "dp2": ("detail path", stem + dilated + [(3, 1, dilation) for dilation in long]),
    }


@pytest.mark.parametrize("variant", BLOCKS)
def test_receptive_fields_of_the_chains(variant):
    """Both convolutions of each block count; the reference's 79, 415 and 527 leave one out."""
    fields = sanet_fields(SANetNetwork(variant, 19))
    for layer, (path, windows) in windows_of(variant).items():
        size, step = chain(windows)[-1]
        found = last_of(fields[path], layer)
        assert found.size == (size, size) and found.step == (step, step), layer
    if variant == "S":
        published = {"layer3": 159, "dp2": 607, "layer6": 559}
        paths = {layer: path for layer, (path, _) in windows_of(variant).items()}
        for layer, size in published.items():
            assert last_of(fields[paths[layer]], layer).size == (size, size)
    # The pools are beside each other, none sees what another has pooled.
    deep, step = chain(windows_of(variant)["layer6"][1])[-1]
    for layer, pool, stride in (("scale11", 5, 2), ("scale22", 9, 4), ("scale33", 17, 8)):
        # Along rows: pooling and two convolutions at its stride; along columns the first of them
        # still at the old one.
        across = deep + (pool - 1) * step + 2 * 2 * step * stride
        down = deep + 2 * step + (pool - 1) * step + 2 * step * stride
        assert last_of(fields["deep path"], f"spp.{layer}").size == (down, across)
    assert last_of(fields["all paths"], "final_layer").whole == (True, True)
    assert last_of(fields["without global pooling"], "final_layer").whole == (False, False)


@pytest.mark.parametrize(("layer", "size"), [("layer3", 159), ("layer4", 271)])
def test_receptive_fields_are_where_gradients_are(network, layer, size):
    noise = np.random.default_rng(1).standard_normal((1, 3, 352, 352)).astype(np.float32)
    measured = effective_receptive_field(network, find_layer(network, layer), noise)
    rows, columns = np.nonzero(measured)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (size, size)


def test_heat_map_at_the_logits_is_the_closed_form(network):
    pixels = np.random.default_rng(3).standard_normal((3, 64, 96)).astype(np.float32)
    probe = LayerGradients(Prediction(network), network.final_layer, pixels[None])
    logits = probe.output[0]
    found = np.unique(logits.argmax(axis=0))
    assert len(found) > 1
    for number in found[:2]:
        direction = np.zeros_like(probe.output)
        direction[0, number] = logits.argmax(axis=0) == number
        by_gradient = grad_cam(probe.activation[0], probe.gradient(direction)[0])
        np.testing.assert_allclose(by_gradient, logit_heat_map(logits, number), atol=1e-6)
    share = (logits.argmax(axis=0) == found[0]).mean()
    assert logit_heat_map(logits, found[0]).max() == pytest.approx(share * logits[found[0]].max())


def head_score(head, features, number, mask):
    """Sum of a class's logits over a mask, by NumPy in double precision (BN, ReLU, conv twice)."""
    x = features.astype(np.float64)
    for norm, conv in ((head.bn1, head.conv1), (head.bn2, head.conv2)):
        scale, shift, mean, variance = (
            p.asnumpy().astype(np.float64)[:, None, None]
            for p in (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
        )
        x = np.maximum((x - mean) / np.sqrt(variance + norm.eps) * scale + shift, 0)
        weight = conv.weight.asnumpy().astype(np.float64)
        side = weight.shape[2] // 2
        padded = np.pad(x, ((0, 0), (side, side), (side, side)))
        patches = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], (1, 2))
        x = np.einsum("chwij,ocij->ohw", patches, weight)
    return (x[number] + float(head.conv2.bias.asnumpy()[number]))[mask].sum()


def test_heat_map_at_the_decoder_against_differences(network):
    """Channel weights are the slopes of the score when a whole channel is raised."""
    pixels = np.random.default_rng(5).standard_normal((3, 64, 96)).astype(np.float32)
    probe = LayerGradients(Prediction(network), network.decoder, pixels[None])
    number = int(probe.output[0].argmax(axis=0)[0, 0])
    mask = probe.output[0].argmax(axis=0) == number
    features = probe.activation[0].astype(np.float64)
    assert head_score(network.final_layer, features, number, mask) == pytest.approx(
        probe.output[0, number][mask].sum(), rel=1e-4
    )
    slopes = np.empty(len(features))
    for channel in range(len(features)):
        raised, lowered = features.copy(), features.copy()
        raised[channel] += 1e-7
        lowered[channel] -= 1e-7
        slopes[channel] = (
            head_score(network.final_layer, raised, number, mask)
            - head_score(network.final_layer, lowered, number, mask)
        ) / 2e-7
    expected = np.maximum(np.tensordot(slopes / mask.size, features, 1), 0)
    assert expected.max() > 0
    found = [m for m in heat_maps(network, pixels, "decoder") if m.number == number][0]
    np.testing.assert_allclose(found.values, expected, atol=1e-3 * expected.max())
    fine = resize_aligned(probe.output[0], (64, 96)).argmax(axis=0)
    np.testing.assert_array_equal(found.mask, fine == number)


def test_heatmap_command(config, tmp_path, model):
    write_image(tmp_path / "street.png", photo())
    config.infer.images = str(tmp_path / "street.png")
    predicted = np.unique(model.run_network(model.normalise(photo())[None])[0].argmax(axis=0))
    missing = next(k for k in range(11) if k not in predicted)
    heatmap(SANetTask(), config, tmp_path / "all")
    names = {path.name for path in (tmp_path / "all").glob("*.png")}
    assert names == {
        f"street-{ascii_name(CAMVID.names[k])}-{kind}.png"
        for k in predicted
        for kind in ("prediction", "heatmap")
    }
    config.heatmap.classes = [CAMVID.names[predicted[0]].upper(), str(missing)]
    config.heatmap.layer = "final_layer"
    heatmap(SANetTask(), config, tmp_path / "one")
    listed = json.loads((tmp_path / "one/metrics.json").read_text())["classes"]
    assert list(listed.values()) == [[CAMVID.names[predicted[0]]]]
    picture = read_image(tmp_path / f"one/street-{CAMVID.names[predicted[0]]}-heatmap.png")
    assert picture.shape == (96, 128, 3)
    assert ascii_name("traffic light") == "traffic_light"


def test_classes_by_name_or_number():
    assert class_numbers(["Traffic Light", "0"], CITYSCAPES) == [6, 0]
    assert class_numbers([], CITYSCAPES) is None
    for wrong in ("lamp", "19", "-1"):
        with pytest.raises(UserError, match=f"no class '{wrong}'; classes are road"):
            class_numbers([wrong], CITYSCAPES)


def test_boundary_map_is_the_boundary_head(network, model):
    """At an odd size, by the heads as trained and a resizing of our own."""
    image = photo(50, 71)
    logits = network(ms.Tensor(model.normalise(image)[None]))[2].asnumpy()[0]
    expected = 1 / (1 + np.exp(-resize_aligned(logits.astype(np.float64), (50, 71))[0]))
    np.testing.assert_allclose(boundary_map(model, image), expected, atol=2e-5)


def test_class_boundaries_of_the_reference(config, tmp_path):
    _, arrays = load_fixture("SANet_tools")
    labels = CITYSCAPES.decode(arrays["label_ids"], "fixture")
    bands = class_boundaries(labels, 19)
    np.testing.assert_array_equal(np.where(bands == IGNORE, 19, bands), arrays["edge_class"])
    write_image(tmp_path / "town_gtFine_labelIds.png", arrays["label_ids"])
    config.data.format = "cityscapes"
    config.boundary.masks = str(tmp_path / "town_gtFine_labelIds.png")
    boundary(SANetTask(), config, tmp_path)
    drawn = read_image(tmp_path / "town_gtFine_labelIds_class_boundaries.png")
    np.testing.assert_array_equal(drawn, arrays["edge_rgb"])


def test_pictures_of_a_segmentation():
    image = photo(8, 10)
    classes = np.full((8, 10), 6, np.uint8)
    classes[:, 5:], classes[0, 0] = 2, IGNORE
    pictures = draw_segmentation(image, classes, CAMVID, 0.25)
    assert (pictures["map"][1:, :5] == (128, 64, 128)).all() and not pictures["map"][0, 0].any()
    mixed = np.rint(0.75 * image + 0.25 * pictures["map"].astype(float))
    mixed[0, 0] = image[0, 0]
    np.testing.assert_array_equal(pictures["overlay"], mixed)
    colours = {tuple(colour) for colour in pictures["legend"].reshape(-1, 3).tolist()}
    assert {(128, 64, 128), (64, 0, 128)} <= colours and (0, 0, 192) not in colours
    _, arrays = load_fixture("SANet_tools")
    np.testing.assert_array_equal(
        draw_segmentation(arrays["color_rgb"], arrays["color_pred"], CITYSCAPES)["map"],
        arrays["color_rgb"],
    )


def test_video_frames_are_the_images_segmentations(model, tmp_path):
    """Written without loss; odd frames end in a repeated row and column."""
    frames = [photo(47, 65, seed) for seed in range(3)]
    for number, frame in enumerate(frames):
        write_image(tmp_path / f"frame_{number}.png", frame)
    report = segment_video(
        str(tmp_path / "frame_*.png"), tmp_path / "out.mkv", model.run_network, model.normalise,
        CAMVID, kind="both", batch=2, show_rate=False,
    )  # fmt: skip
    assert report.frames == 3
    capture = cv2.VideoCapture(str(tmp_path / "out.mkv"), cv2.CAP_FFMPEG)
    for frame in frames:
        classes = model.predict(frame)
        overlay = cv2.addWeighted(frame, 0.5, CAMVID.colourise(classes), 0.5, 0)
        found = capture.read()[1][:47, :130, ::-1]
        np.testing.assert_array_equal(found[:, :65], frame)
        # A place where two classes score alike may fall either way.
        assert (found[:, 65:] != overlay).any(axis=2).mean() < 0.002
    assert not capture.read()[0]


def test_video_command_tells_of_a_cut_video(config, tmp_path, caplog):
    writer = cv2.VideoWriter(
        str(tmp_path / "drive.avi"), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), 5, (96, 64)
    )
    for seed in range(6):
        writer.write(photo(64, 96, seed))
    writer.release()
    data = (tmp_path / "drive.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) * 6 // 10])
    config.video.source = str(tmp_path / "cut.avi")
    config.video.draw = "map"
    with caplog.at_level("INFO", logger="zoo"):
        video(SANetTask(), config, tmp_path / "out")
    figures = json.loads((tmp_path / "out/metrics.json").read_text())
    assert 0 < figures["frames"] < 6 and "ends in the middle" in figures["remark"]
    assert figures["remark"] in caplog.text and "images/s" in caplog.text
    capture = cv2.VideoCapture(str(tmp_path / "out/segmented.mp4"), cv2.CAP_FFMPEG)
    assert capture.get(cv2.CAP_PROP_FPS) == 5 and capture.read()[1].shape == (64, 96, 3)
    config.video.output = "drive.gif"
    with pytest.raises(UserError, match=r"drive\.gif; its name must end in"):
        video(SANetTask(), config, tmp_path / "out")
    config.video.source = ""
    with pytest.raises(UserError, match="needs a video"):
        video(SANetTask(), config, tmp_path / "out")


def test_results_of_exported_files_become_classes():
    scores = np.random.default_rng(0).standard_normal((4, 5, 6)).astype(np.float32)
    np.testing.assert_array_equal(to_classes(scores, (5, 6)), scores.argmax(axis=0))
    classes = scores.argmax(axis=0).astype(np.int32)
    np.testing.assert_array_equal(to_classes(classes, (5, 6)), classes)
    assert to_classes(scores, (11, 13)).shape == (11, 13)


def test_speed_measures_what_is_right(network):
    keys = SpeedConfig(
        height=64, width=96, batch_size=2, warmup=1, repeats=3, backends=["mindspore"]
    )
    rows = measure(network, keys)
    assert [(row.number, row.folded) for row in rows] == [
        ("float32", False), ("float32", True), ("float16", True),
    ]  # fmt: skip
    plain, folded, half = rows
    assert plain.difference == 0 and 0 < folded.difference < 2e-5 < half.difference < 2e-2
    assert all(len(row.seconds) == 3 and row.batch == 2 for row in rows)
    with pytest.raises(UserError, match="backend torch is not one of mindspore"):
        measure(network, SpeedConfig(backends=["torch"]))


def test_files_are_timed_folded_which_they_always_are(network):
    """Backends fold what they write to a file; an unfolded row would be folded all the same."""
    backends = ["onnxruntime", "mindspore", "openvino-bf16"]
    keys = SpeedConfig(height=64, width=96, backends=backends, half=False)
    assert [row[:3] for row in cases(network, keys)] == [
        ("onnxruntime", "float32", True),
        ("mindspore", "float32", False),
        ("mindspore", "float32", True),
        ("openvino-bf16", "bfloat16", True),
    ]


def test_names_that_come_out_alike_get_numbers():
    assert ascii_names(["road", "traffic light", "\u9053", "\u8def"]) == [
        "road", "traffic_light", "class_2", "class_3"
    ]  # fmt: skip


def test_durations_and_percentiles(monkeypatch):
    clock = iter([0.0, 1.0, 1.0, 3.0, 3.0, 6.0])
    calls = []
    monkeypatch.setattr("research.sanet.src.tools.speed.time.perf_counter", lambda: next(clock))
    found = durations(lambda: calls.append(0), warmup=4, repeats=3)
    assert found == (1.0, 2.0, 3.0) and len(calls) == 7
    row = Timing("mindspore", "float32", False, 4, found, 0.0)
    assert row.rate == 2.0 and row.milliseconds(50) == 2000
    assert row.milliseconds(5) == pytest.approx(1100)


def test_complexity_command(config, tmp_path):
    config.complexity.sizes = []
    with pytest.raises(UserError, match="complexity.sizes is empty"):
        complexity(SANetTask(), config, tmp_path)
    config.complexity.sizes = ["64x96"]
    complexity(SANetTask(), config, tmp_path)
    with open(tmp_path / "complexity_S.csv", newline="", encoding="utf-8") as stream:
        rows = {row["layer"]: row for row in csv.DictReader(stream)}
    assert int(rows["layer5"]["parameters"]) == MODULES["S"]["layer5"]
    figures = json.loads((tmp_path / "metrics.json").read_text())
    total = sum(int(row["multiply_adds"]) for row in rows.values())
    assert figures["S"]["multiply_adds_with_heads"] == {"64x96": total}
    assert figures["L"]["parameters"] > figures["M"]["parameters"] > figures["S"]["parameters"]


@pytest.mark.parametrize("text", ["1024", "0x5", "1024x", "a x b"])
def test_sizes_that_are_none(text):
    with pytest.raises(UserError, match="is not ROWSxCOLUMNS"):
        parse_size(text)
    assert parse_size(" 720 X 960") == (720, 960)


def test_squares_to_measure_on(config, tmp_path):
    """Small images are enlarged, large ones cut; noise without images."""
    write_image(tmp_path / "a.png", photo(40, 100))
    config.infer.images = str(tmp_path)
    found, what = squares(config, 64, 3)
    assert found.shape == (3, 3, 64, 64) and str(tmp_path) in what
    config.infer.images = ""
    assert squares(config, 64, 2)[0].shape == (2, 3, 64, 64)


def test_tools_need_layers(model, config, tmp_path):
    """An exported file has neither layers nor the boundary head."""
    file = tmp_path / "exported.onnx"
    file.write_bytes(b"not read")
    config.checkpoint_path = str(file)
    config.infer.images = str(tmp_path / "a.png")
    write_image(tmp_path / "a.png", photo())
    with pytest.raises(UserError, match="exported file; a heat map needs the network's layers"):
        heatmap(SANetTask(), config, tmp_path)
    with pytest.raises(UserError, match="no layer 'decodr'"):
        heat_maps(model.network, np.zeros((3, 64, 64), np.float32), "decodr")
