"""The update's arithmetic against NumPy, and loads and saves that only some settings reach."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from model_utils import checkpoint as checkpoints
from model_utils.distributed import Ranks
from model_utils.errors import UserError
from model_utils.optimizers import OptimizerConfig, build_optimizer
from model_utils.training import AccumulateStep, Trainer, TrainStep
from research.sdnet.src.config import SDNetConfig
from research.sdnet.src.task import SDNetTask
from tests.toy.task import ToyConfig, ToyTask


class Linear(nn.Cell):
    """Mean squared error of a linear map: gradients that NumPy gives in one line."""

    def __init__(self, weight):
        super().__init__()
        self.weight = ms.Parameter(Tensor(weight), name="weight")

    def construct(self, x, y):
        error = (x * self.weight).sum(axis=1) - y
        return ((error * error).mean(),)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_accumulated_clipped_and_averaged_updates_are_those_of_the_whole_batch(parts, clip):
    ms.set_context(mode=ms.GRAPH_MODE)
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(5).astype(np.float32)
    cell = Linear(weight)
    optimizer = nn.SGD(cell.trainable_params(), 0.1)
    step = TrainStep(cell, optimizer, Ranks(), clip, parts, ema_decay=0.9)
    add = AccumulateStep(step) if parts > 1 else None
    average = weight.astype(np.float64)
    expected = weight.astype(np.float64)
    for _ in range(3):
        x = rng.standard_normal((12, 5)).astype(np.float32)
        y = rng.standard_normal(12).astype(np.float32)
        for part in range(parts):
            rows = slice(part * 12 // parts, (part + 1) * 12 // parts)
            batch = (Tensor(x[rows]), Tensor(y[rows]))
            if part < parts - 1:
                add(*batch)
            else:
                step(Tensor(np.zeros(1, np.float32)), *batch)
        gradient = 2 * x.T @ (x @ expected - y) / 12
        norm = np.linalg.norm(gradient)
        if clip and norm > clip:
            gradient *= clip / norm
        expected -= 0.1 * gradient
        average += 0.1 * (expected - average)
        np.testing.assert_allclose(cell.weight.asnumpy(), expected, atol=2e-6)
        np.testing.assert_allclose(step.averages[0].asnumpy(), average, atol=2e-6)


class Scaled(nn.Cell):
    """A loss whose only parameters are called as batch normalisation's are."""

    def __init__(self):
        super().__init__()
        self.gamma = ms.Parameter(Tensor(np.float32([1, 2])), name="bn.gamma")
        self.beta = ms.Parameter(Tensor(np.float32([3, 4])), name="bn.beta")

    def construct(self, x):
        return ((self.gamma * x + self.beta).sum(),)


def test_sgd_decays_every_parameter_and_steps_as_nesterov_defines_it():
    """The framework leaves gamma and beta without decay unless told; PyTorch does not."""
    cell = Scaled()
    config = OptimizerConfig(name="sgd", momentum=0.9, nesterov=True, weight_decay=0.1)
    rates = np.float32([0.5, 0.25, 0.125])
    optimizer = build_optimizer(config, [{"params": cell.trainable_params()}], rates)
    step = TrainStep(cell, optimizer, Ranks())
    expected = {"gamma": np.array([1.0, 2.0]), "beta": np.array([3.0, 4.0])}
    velocity = {"gamma": 0.0, "beta": 0.0}
    for rate, x in zip(rates, np.float32([[1, -2], [0.5, 3], [-1, 1]]), strict=True):
        step(Tensor(np.zeros(1, np.float32)), Tensor(x))
        for name, slope in (("gamma", x), ("beta", np.ones(2))):
            gradient = slope + 0.1 * expected[name]
            velocity[name] = 0.9 * velocity[name] + gradient
            expected[name] = expected[name] - rate * (gradient + 0.9 * velocity[name])
        np.testing.assert_allclose(cell.gamma.asnumpy(), expected["gamma"], atol=1e-6)
        np.testing.assert_allclose(cell.beta.asnumpy(), expected["beta"], atol=1e-6)


def test_weights_inside_a_training_state_are_the_weights(tmp_path):
    task, config = SDNetTask(), SDNetConfig()
    network = task.build_network(config, Ranks())
    optimizer = nn.Adam(network.trainable_params(), 0.001)
    parameters = [*network.get_parameters(), *optimizer.get_parameters()]
    state = tmp_path / "state.ckpt"
    arrays = {each.name: each.asnumpy() for each in parameters}
    checkpoints.save(state, arrays, network="sdnet", kind=checkpoints.STATE)
    other = task.build_network(SDNetConfig(seed=1), Ranks())
    checkpoints.load_weights(other, state, name="sdnet", rename=task.rename_parameter)
    for name, value in checkpoints.weights_of(other).items():
        np.testing.assert_array_equal(value, arrays[name], err_msg=name)


def test_mixed_precision_as_on_ascend_saves_its_scale_and_resumes(tmp_path):
    """The path that amp_level=auto takes on Ascend, on the CPU's float16."""
    ms.set_context(mode=ms.GRAPH_MODE)
    config = ToyConfig()
    config.train.epochs, config.train.batch_size = 1, 32
    config.data.workers, config.data.samples = 0, 96
    trainer = Trainer(ToyTask(), config, "Ascend", Ranks(), tmp_path)
    assert trainer.step.scaler is not None
    trainer.run()
    saved = checkpoints.load(tmp_path / "state.ckpt").arrays
    assert saved["scale_value"] == 1024 and saved["counter"] == 3
    config.train.resume = True
    again = Trainer(ToyTask(), config, "Ascend", Ranks(), tmp_path)
    again.restore()
    assert again.step.scaler.counter.asnumpy() == 3


def test_weights_of_a_state_with_averages_are_the_averages(tmp_path):
    task, config = SDNetTask(), SDNetConfig()
    network = task.build_network(config, Ranks())
    arrays = {each.name: each.asnumpy() for each in network.get_parameters()}
    averaged = {f"ema.{each.name}": each.asnumpy() + 1 for each in network.trainable_params()}
    state = tmp_path / "state.ckpt"
    checkpoints.save(state, {**arrays, **averaged}, network="sdnet", kind=checkpoints.STATE)
    checkpoints.load_weights(network, state, name="sdnet", rename=task.rename_parameter)
    for name, value in checkpoints.weights_of(network).items():
        expected = averaged.get(f"ema.{name}", arrays[name])
        np.testing.assert_array_equal(value, expected, err_msg=name)


def test_optimizer_state_in_a_foreign_file_never_becomes_weights(tmp_path):
    task, config = SDNetTask(), SDNetConfig()
    network = task.build_network(config, Ranks())
    records = []
    for parameter in network.get_parameters():
        if not parameter.name.endswith("dropout_calls"):
            value = parameter.asnumpy()
            records.append({"name": f"network.{parameter.name}", "data": Tensor(value)})
            records.append({"name": f"moment2.{parameter.name}", "data": Tensor(value * 0)})
    ms.save_checkpoint(records, str(tmp_path / "old.ckpt"))
    other = task.build_network(SDNetConfig(seed=1), Ranks())
    path = tmp_path / "old.ckpt"
    checkpoints.load_weights(other, path, name="sdnet", rename=task.rename_parameter)
    for name, value in checkpoints.weights_of(other).items():
        np.testing.assert_array_equal(value, checkpoints.weights_of(network)[name], err_msg=name)


def test_two_tensors_for_one_parameter_are_refused(tmp_path):
    network = SDNetTask().build_network(SDNetConfig(), Ranks())
    arrays = checkpoints.weights_of(network)
    arrays["copy.model_D.decoder.0.bias"] = arrays["model_D.decoder.0.bias"]
    path = checkpoints.save(tmp_path / "a.ckpt", arrays, network="sdnet")
    with pytest.raises(UserError, match="both mean the parameter 'model_D.decoder.0.bias'"):
        checkpoints.load_weights(network, path, name="sdnet", rename=SDNetTask().rename_parameter)
