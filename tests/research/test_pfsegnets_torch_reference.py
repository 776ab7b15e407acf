"""The benchmark's PyTorch network must be the published one to be a yardstick."""

import numpy as np
import pytest

from model_utils.torch_counterpart import copy_weights
from tests import seeded
from tests.research.parity import relative

torch = pytest.importorskip("torch")

from research.pfsegnets.src import torch_reference  # noqa: E402  torch may be missing


def build(description):
    options = description["options"]
    backbone = options["backbone"].partition("-")[0].partition("_")[0]
    network = torch_reference.PFNetTorch(
        backbone,
        options["num_classes"],
        options["psp_sizes"],
        options["pool_style"],
        options["max_pool_size"],
        options["avgpool_size"],
        options["edge_points"],
        options["reduce_dim"],
        dropout=0.0,
    )
    weights = {
        name: seeded.parameter(name, shape, description["gain"])
        for name, shape, _ in description["params"]
    }
    copy_weights(network, weights)
    return network, weights


def watch(network, found):
    """Hooks that keep what the fixtures store of the inside."""

    def keep(name, pick=lambda output: output):
        def hook(module, inputs, output):
            found[name] = pick(output).detach().numpy()

        return hook

    for number in (1, 2, 3, 4):
        getattr(network, f"layer{number}").register_forward_hook(keep(f"layer{number}"))
    network.head.ppm.register_forward_hook(keep("psp"))
    for level, flow in enumerate(network.head.fpn_out_align):
        flow.point_matcher.register_forward_hook(keep(f"cert{level}"))
        flow.register_forward_hook(keep(f"flow{level}", lambda output: output[0]))
        flow.edge_final.register_forward_hook(keep(f"edge{level}"))


SUBSAMPLED = {
    "layer1": np.s_[:, ::16, ::4, ::4],
    "layer2": np.s_[:, ::32, ::2, ::2],
    "layer3": np.s_[:, ::64],
    "layer4": np.s_[:, ::64],
    "flow2": np.s_[:, ::8],
    "flow1": np.s_[:, ::8, ::2, ::2],
    "flow0": np.s_[:, ::8, ::2, ::2],
}


def check_points(description, arrays, found):
    """The points that were selected, from the certainty and edge maps inside."""
    options = description["options"]
    for level in (0, 1, 2):
        certainty = torch.from_numpy(found[f"cert{level}"])
        largest, index = torch_reference.maximum_pool(
            certainty, options["max_pool_size"], options["pool_style"]
        )
        assert np.array_equal(index.numpy(), arrays[f"max_idx{level}"])
        if f"max_val{level}" in arrays:
            assert relative(largest.numpy(), arrays[f"max_val{level}"]) < 2e-5
        edge = found[f"edge{level}"].reshape(len(certainty), -1)
        count = arrays[f"edge_idx{level}"].shape[1]
        chosen = np.sort(np.argsort(-edge, axis=1)[:, :count], axis=1)
        assert np.array_equal(chosen, arrays[f"edge_idx{level}"])


@pytest.mark.parametrize("fixture", ["PFNet_R50", "PFNet_R50_jittor", "PFNet_R2N101"])
def test_outputs_and_points_equal_published_code(fixture):
    description, arrays = seeded.load_fixture(fixture)
    network, weights = build(description)
    names = {n for n in network.state_dict() if not n.endswith("num_batches_tracked")}
    assert names == {n for n in weights if not n.endswith("num_batches_tracked")}
    found = {}
    watch(network, found)
    ((name, shape),) = description["inputs"].items()
    image = torch.from_numpy(seeded.network_input(name, shape))
    with torch.inference_mode():
        logits, edges = network.eval()(image)
        scores = torch_reference.Scores(network)(image).numpy()
    for key, where in SUBSAMPLED.items():
        assert relative(found[key][where], arrays[key]) < 2e-5, key
    for key in ("psp", "cert0", "cert1", "cert2"):
        assert relative(found[key], arrays[key]) < 2e-5, key
    for level, edge in zip((2, 1, 0), edges, strict=True):
        assert relative(edge.numpy(), arrays[f"edge{level}"]) < 5e-5
    check_points(description, arrays, found)
    assert relative(logits.numpy()[:, :, ::2, ::2], arrays["head_s2"]) < 2e-5
    assert relative(scores[:, :, ::8, ::8], arrays["logits_s8"]) < 2e-5
    assert relative(scores[:, :, 128], arrays["logits_row"]) < 2e-5


def test_losses_and_gradients_equal_published_code():
    """With frozen BatchNorm and in double precision, where gradients are exact."""
    description, arrays = seeded.load_fixture("PFNet_R50_fixbn")
    network, _ = build(description)
    network = network.double().eval()
    found = {}
    watch(network, found)
    ((name, shape),) = description["inputs"].items()
    image = torch.from_numpy(seeded.network_input(name, shape)).double()
    label = torch.from_numpy(arrays["label"].astype(np.int64))
    edge = torch.from_numpy(arrays["edge"].astype(np.float64))
    values = torch_reference.losses(network(image), label, edge)
    values[0].backward()
    expected = description["loss_f64"]
    keys = ("seg_loss", "edge_loss_layer3", "edge_loss_layer2", "edge_loss_layer1")
    assert values[0].item() == pytest.approx(description["total_f64"], rel=1e-9)
    for key, value in zip(keys, values[1:], strict=True):
        assert value.item() == pytest.approx(expected[key], rel=1e-9), key
    check_points(description, arrays, found)
    gradients = {name: p.grad.numpy() for name, p in network.named_parameters()}
    assert gradients.keys() == description["grad_l2"].keys()
    for name, entry in description["grad_l2"].items():
        assert np.linalg.norm(gradients[name]) == pytest.approx(entry["l2_f64"], rel=1e-6), name
    for key, value in arrays.items():
        if key.startswith("grad:"):
            assert relative(gradients[key.removeprefix("grad:")], value) < 1e-6, key


def fixture_logits(description, arrays):
    label = arrays["label"].astype(np.int64)
    logits = 3 * seeded.network_input("seg_logits", description["inputs"]["seg_logits"])
    boosted = np.zeros_like(logits)
    channel = np.where(label == 255, 0, label)[:, None]
    np.put_along_axis(boosted, channel, 10.0 * arrays["boost"][:, None], axis=1)
    return (logits + boosted).astype(np.float32), torch.from_numpy(label)


@pytest.mark.parametrize("setting", ["0.7_10000", "0.7_500", "0.7_6000", "0.05_3000"])
def test_hard_example_loss_equals_published_code(setting):
    description, arrays = seeded.load_fixture("PFNet_losses")
    expected = description["values"][f"ohem_{setting}"]
    logits, label = fixture_logits(description, arrays)
    threshold, keep = setting.split("_")
    tensor = torch.from_numpy(logits).requires_grad_()
    loss = torch_reference.hard_example_loss(tensor, label, float(threshold), int(keep))
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-5)
    assert int((tensor.grad.abs().sum(1) > 0).sum()) == expected["pixels_with_gradient"]


def test_joint_loss_equals_published_code():
    description, arrays = seeded.load_fixture("PFNet_losses")
    logits, label = fixture_logits(description, arrays)
    edges = tuple(
        torch.from_numpy(2 * seeded.network_input(name, description["inputs"][name]))
        for name in ("edge_logits3", "edge_logits2", "edge_logits1")
    )
    edge = torch.from_numpy(arrays["edge"].astype(np.float32))
    found = torch_reference.losses((torch.from_numpy(logits), edges), label, edge)
    expected = description["values"]["joint_ohem_bce"]
    keys = ("total", "seg_loss", "edge_loss_layer3", "edge_loss_layer2", "edge_loss_layer1")
    for key, value in zip(keys, found, strict=True):
        assert value.item() == pytest.approx(expected[key], rel=1e-5), key


def test_resnet101_equals_this_network():
    """No stored values at hand: two implementations from one description."""
    from mindspore import Tensor

    from model_utils.torch_counterpart import pytorch_name
    from research.pfsegnets.src.network import PFNet

    points = {"max_pool_size": 6, "avg_pool_size": 5, "edge_points": 64}
    ours = PFNet("resnet101", 16, dropout="none", **points)
    weights = {}
    for parameter in ours.get_parameters():
        name = pytorch_name(parameter.name)
        weights[name] = seeded.parameter(name, parameter.shape, 0.55)
        parameter.set_data(Tensor(weights[name]))
    assert sum(array.size for name, array in weights.items() if "running" not in name) == 51_986_131
    ours.set_train(False)
    theirs = torch_reference.PFNetTorch("resnet101", 16, dropout=0.0, **points)
    copy_weights(theirs, weights)
    image = seeded.network_input("image37", (1, 3, 256, 256))
    with torch.inference_mode():
        logits, edges = theirs.eval()(torch.from_numpy(image))
    found, found_edges = ours(Tensor(image))
    assert relative(found.asnumpy(), logits.numpy()) < 1e-5
    for mine, other in zip(found_edges, edges, strict=True):
        assert relative(mine.asnumpy(), other.numpy()) < 2e-5
