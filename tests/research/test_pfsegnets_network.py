"""PFNet's outputs, its points and its gradients against what the published codes compute."""

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import Tensor, nn

from model_utils.errors import UserError
from model_utils.torch_counterpart import pytorch_name
from research.pfsegnets.src.losses import PFNetLoss
from research.pfsegnets.src.network import PFNet
from research.pfsegnets.src.point_flow import LargestPoints
from research.pfsegnets.src.pooling import AdaptiveAverage, AdaptiveMaximum, pooling_windows
from tests import seeded
from tests.research.parity import fill, relative

BACKBONES = {"resnet50-deep": "resnet50", "res2net101_26w_4s (plain, 7x7 stem)": "res2net101"}


def build(description):
    """The network a fixture describes, with its weights."""
    keys = description["options"]
    network = PFNet(
        BACKBONES[keys["backbone"]],
        keys["num_classes"],
        keys["psp_sizes"],
        keys["pool_style"],
        "none",
        keys["max_pool_size"],
        keys["avgpool_size"],
        keys["edge_points"],
        keys["reduce_dim"],
        freeze_batch_norm="running statistics" in keys["mode"],
    )
    assert fill(network, description["params"], description["gain"]) == []
    return network


class Probe(nn.Cell):
    """The network's stages, all that its PointFlow modules decide, and its outputs."""

    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, image):
        network, head = self.network, self.network.head
        c1 = network.layer1(network.layer0(image))
        c2 = network.layer2(c1)
        c3 = network.layer3(c2)
        c4 = network.layer4(c3)
        flowing = head.ppm(c4)
        found = [c1, c2, c3, c4, flowing]
        for place in (2, 1, 0):
            flow, low = head.fpn_out_align[place], head.fpn_in[place]((c1, c2, c3)[place])
            certainty = flow.certainty(flowing, low)
            edge, boundary, salient, values = flow.points(flowing, certainty)
            replaced, _ = flow(flowing, low)
            found.extend((certainty, edge, boundary, salient, values, replaced))
            flowing = low + replaced
        return (*found, network(image)[0])


@pytest.mark.parametrize("name", ["PFNet_R50", "PFNet_R50_jittor", "PFNet_R2N101"])
def test_outputs_and_points_equal_published_code(name):
    description, arrays = seeded.load_fixture(name)
    network = build(description)
    network.set_train(False)
    ((key, shape),) = description["inputs"].items()
    image = seeded.network_input(key, shape)
    probe = Probe(network)
    probe.set_train(False)
    for _ in range(3):
        c1, c2, c3, c4, psp, *levels, logits = [x.asnumpy() for x in probe(Tensor(image))]
        for stage, value in (
            ("layer1", c1[:, ::16, ::4, ::4]),
            ("layer2", c2[:, ::32, ::2, ::2]),
            ("layer3", c3[:, ::64]),
            ("layer4", c4[:, ::64]),
            ("psp", psp),
            ("head_s2", logits[:, :, ::2, ::2]),
        ):
            assert relative(value, arrays[stage]) < 1e-5, stage
        for place, step, level in ((2, 1, 0), (1, 2, 1), (0, 2, 2)):
            certainty, edge, boundary, salient, values, flow = levels[6 * level : 6 * level + 6]
            np.testing.assert_allclose(certainty, arrays[f"cert{place}"], atol=1e-5)
            assert relative(edge, arrays[f"edge{place}"]) < 1e-5
            np.testing.assert_array_equal(np.sort(boundary), arrays[f"edge_idx{place}"])
            np.testing.assert_array_equal(salient, arrays[f"max_idx{place}"].reshape(1, -1))
            np.testing.assert_allclose(values, arrays[f"max_val{place}"].reshape(1, -1), atol=1e-5)
            assert relative(flow[:, ::8, ::step, ::step], arrays[f"flow{place}"]) < 1e-5
        other = probe(Tensor(image[:, :, ::-1].copy()))[-1].asnumpy()
        assert relative(other[:, :, ::2, ::2], arrays["head_s2"]) > 1e-2
    # Up to the input's size, with aligned corners.
    from model_utils.windows import resize_aligned

    full = resize_aligned(logits[0], image.shape[2:])
    assert relative(full[:, ::8, ::8], arrays["logits_s8"][0]) < 1e-5
    assert relative(full[:, 128], arrays["logits_row"][0]) < 1e-5


class Differentiated(nn.Cell):
    """Losses and gradients by all parameters."""

    def __init__(self, network, loss):
        super().__init__(auto_prefix=False)
        self.network = network
        self.loss = loss
        self.differentiate = ms.value_and_grad(
            self.run, None, network.trainable_params(), has_aux=True
        )

    def run(self, image, label, edge):
        logits, edges = self.network(image)
        losses = self.loss(logits, edges, label, edge)
        return losses[0], losses

    def construct(self, image, label, edge):
        (_, losses), gradients = self.differentiate(image, label, edge)
        return losses, gradients


@pytest.mark.parametrize(
    ("name", "tolerance"), [("PFNet_R50_fixbn", 1e-5), ("PFNet_R50_train", 2e-5)]
)
def test_losses_and_gradients_equal_published_code(name, tolerance):
    """In training, the reference's own rounding moves gradients by two percent: measured there."""
    description, arrays = seeded.load_fixture(name)
    network = build(description)
    network.set_train(True)
    keys = description["options"]
    loss = PFNetLoss(16, 1.0, keys["edge_weight"], "bce", True, 0.7, keys["ohem_min_kept"])
    run = Differentiated(network, loss)
    ((key, shape),) = description["inputs"].items()
    image = seeded.network_input(key, shape)
    for _ in range(3):
        state = {p.name: p.asnumpy().copy() for p in network.get_parameters()}
        losses, gradients = run(Tensor(image), Tensor(arrays["label"]), Tensor(arrays["edge"]))
        total, *parts, _ = [float(x) for x in losses]
        assert total == pytest.approx(description["total"], rel=tolerance)
        for part, kind in zip(
            parts, ("seg_loss", *(f"edge_loss_layer{n}" for n in (3, 2, 1))), strict=True
        ):
            assert part == pytest.approx(description["loss"][kind], rel=tolerance), kind
        differences, errors = [], []
        for parameter, gradient in zip(network.trainable_params(), gradients, strict=True):
            reference = pytorch_name(parameter.name)
            if reference in description["grad_mathematically_zero"]:
                continue
            expected = description["grad_l2"][reference]
            allowed = max(1e-3, 3 * expected["vec_rel_noise"])
            norm = np.linalg.norm(gradient.asnumpy())
            assert norm == pytest.approx(expected["l2"], rel=allowed), reference
            differences.append(abs(norm / expected["l2"] - 1))
            if f"grad:{reference}" in arrays:
                # The noise is one draw of the reference's, in training about 2e-2 of a vector.
                error = relative(gradient.asnumpy(), arrays[f"grad:{reference}"])
                errors.append(error / allowed)
                assert error < allowed * (1 if name.endswith("fixbn") else 2), reference
        assert np.median(errors) < 1
        assert np.median(differences) < (1e-5 if name.endswith("fixbn") else 3e-3)
        after = {p.name: p.asnumpy() for p in network.get_parameters()}
        for reference, (norm, first) in description["bn_after_one_forward_f64"].items():
            names = {pytorch_name(n): n for n in after}
            value = after[names[reference]]
            if name.endswith("fixbn"):
                np.testing.assert_array_equal(value, state[names[reference]])
            np.testing.assert_allclose(value[: len(first)], first, rtol=1e-4, atol=1e-5)
            assert np.linalg.norm(value) == pytest.approx(norm, rel=1e-4)
        # Another batch in between, and the statistics put back.
        run(Tensor(image * 0.5), Tensor(arrays["label"][::-1].copy()), Tensor(arrays["edge"]))
        for parameter in network.get_parameters():
            parameter.set_data(Tensor(state[parameter.name]))


@pytest.mark.parametrize(
    ("backbone", "classes", "count"),
    [
        ("resnet50", 16, 32_994_003),
        ("resnet50", 6, 32_991_433),
        ("resnet101", 16, 51_986_131),
        ("res2net101", 2, 52_516_285),
    ],
)
def test_parameter_counts(backbone, classes, count):
    network = PFNet(backbone, classes)
    assert sum(p.size for p in network.trainable_params()) == count
    if backbone != "res2net101" and classes == 16:
        plain = PFNet(backbone, classes, point_flow=False)
        expected = {"resnet50": 31_113_936, "resnet101": 50_106_064}[backbone]
        assert sum(p.size for p in plain.trainable_params()) == expected


@given(st.integers(1, 70), st.integers(1, 20))
@settings(max_examples=200, deadline=None)
def test_pooling_windows_cover_the_axis(length, count):
    windows = pooling_windows(length, count, "torch")
    assert windows[0][0] == 0 and windows[-1][1] == length
    assert all(a < b for a, b in windows)
    assert all(after[0] <= before[1] for before, after in zip(windows, windows[1:], strict=False))
    if length >= count:
        equal = pooling_windows(length, count, "jittor")
        assert {b - a for a, b in equal} == {equal[0][1]}
        assert equal[-1][1] == length
        if length % count == 0:
            assert equal == windows
    else:
        with pytest.raises(ValueError, match="pool_style torch"):
            pooling_windows(length, count, "jittor")


class Pools(nn.Cell):
    def __init__(self, count, style):
        super().__init__()
        self.average = AdaptiveAverage(count, style)
        self.maximum = AdaptiveMaximum(count, style)

    def construct(self, x):
        values, places = self.maximum(x)
        return self.average(x), values, places


@pytest.mark.parametrize("style", ["torch", "jittor"])
@pytest.mark.parametrize(("sides", "count"), [((9, 16), 7), ((4, 5), 3), ((8, 8), 8)])
def test_pools_equal_their_definition_under_ties(style, sides, count):
    if min(sides) < count and style == "jittor":
        pytest.skip("refused, see above")
    cell = Pools(count, style) if min(sides) >= count else Pools(min(sides), style)
    count = cell.average.count
    rng = np.random.default_rng(0)
    rows, columns = (pooling_windows(side, count, style) for side in sides)
    for _ in range(3):
        x = rng.integers(0, 3, (2, 1, *sides)).astype(np.float32)
        average, values, places = [y.asnumpy() for y in cell(Tensor(x))]
        for sample in range(2):
            for i, (top, bottom) in enumerate(rows):
                for j, (left, right) in enumerate(columns):
                    window = x[sample, 0, top:bottom, left:right]
                    assert average[sample, 0, i, j] == pytest.approx(window.mean(), rel=1e-5)
                    row, column = np.unravel_index(window.argmax(), window.shape)
                    place = (top + row) * sides[1] + left + column
                    assert places[sample, i * count + j] == place
                    assert values[sample, i * count + j] == window.max()


def test_points_are_the_first_of_equal_ones():
    """Where many logits are equal, as on uniform images, the choice must not be left to chance."""
    rng = np.random.default_rng(1)
    for size, count in ((64, 24), (64, 200), (4096, 128)):
        cell = LargestPoints(count)
        for x in (
            np.zeros((2, size), np.float32),
            rng.integers(0, 5, (2, size)).astype(np.float32),
            rng.standard_normal((2, size)).astype(np.float32),
        ):
            places = np.sort(cell(Tensor(x)).asnumpy())
            expected = np.argsort(-x, axis=1, kind="stable")[:, : min(count, size)]
            np.testing.assert_array_equal(places, np.sort(expected))


@pytest.mark.parametrize(
    ("style", "size", "message"),
    [
        ("torch", (100, 128), "multiples of 32"),
        ("jittor", (256, 512), "at least 448"),
        ("torch", (0, 32), "multiples of 32"),
    ],
)
def test_sizes_without_meaning_are_refused(style, size, message):
    network = PFNet(pool_style=style)
    with pytest.raises(UserError, match=message):
        network.check_size(*size)
    network.check_size(448, 896)


def test_initial_weights_follow_the_published_rule():
    network = PFNet(classes=3, seed=0)
    weight = network.layer3[1].conv2.weight.asnumpy()
    assert weight.std() == pytest.approx(np.sqrt(2 / (256 * 9)), rel=0.01)
    head = network.head.conv_last[0][0].weight.asnumpy()
    assert np.abs(head).max() <= 1 / np.sqrt(1024 * 9) and head.std() > 0.5 / np.sqrt(1024 * 9)
    again = PFNet(classes=3, seed=0).layer3[1].conv2.weight.asnumpy()
    np.testing.assert_array_equal(weight, again)


def test_blocks_may_begin_as_their_shortcuts():
    network = PFNet(classes=3, seed=0, zero_residual=True)
    stage = network.layer2[1]
    network.set_train(False)
    x = np.abs(np.random.default_rng(0).standard_normal((1, 512, 8, 8))).astype(np.float32)
    np.testing.assert_array_equal(stage(Tensor(x)).asnumpy(), x)
    plain = PFNet(classes=3, seed=0).layer2[1]
    plain.set_train(False)
    assert np.abs(plain(Tensor(x)).asnumpy() - x).max() > 0.1
    np.testing.assert_array_equal(stage.conv2.weight.asnumpy(), plain.conv2.weight.asnumpy())
