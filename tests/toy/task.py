"""A sixth network, outside research/: proof that the engine needs to know none of them.

It learns to tell the sign of a two-dimensional wave from 8 x 8 pixels, and has one of
everything whose state a resumed run must not lose: convolution, batch normalisation, dropout.
"""

import os
import time
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor, nn, ops

from model_utils.config import group, key
from model_utils.data import EvaluationSampler, Loader
from model_utils.distributed import gather_parts
from model_utils.layers import Dropout, conv2d
from model_utils.task import Config, DataConfig, Task


@dataclass
class ToyData(DataConfig):
    samples: int = key(96, "training samples")
    validation: int = key(24, "validation samples; 0 for no such split")
    poison: int = key(-1, "index of a sample that holds NaN")
    pause: float = key(0.0, "seconds to make a sample")


@dataclass
class ToyConfig(Config):
    data: ToyData = group(ToyData, workers=1)
    dropout: float = key(0.25, "before the last layer")


class ToyNetwork(nn.Cell):
    def __init__(self, dropout, rank):
        super().__init__()
        self.conv = conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.drop = Dropout(dropout, rank=rank)
        self.dense = nn.Dense(4 * 64, 1)

    def construct(self, x):
        x = self.relu(self.norm(self.conv(x)))
        return self.dense(self.drop(x).reshape(x.shape[0], -1))


class ToyTrainCell(nn.Cell):
    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, x, target):
        error = self.network(x) - target
        return (error * error).mean(), ops.abs(error).mean()


class Waves:
    def __init__(self, config, length):
        self.keys, self.length = config.data, length

    def __len__(self):
        return self.length

    def sample(self, index, rng):
        time.sleep(self.keys.pause)
        phase = np.random.default_rng((1, index)).uniform(-np.pi, np.pi)
        grid = np.arange(8) / 8 + phase
        image = np.sin(grid)[:, None] * np.ones(8) + 0.1 * rng.standard_normal((8, 8))
        if index == self.keys.poison:
            image[3, 3] = np.nan
        return image[None].astype(np.float32), np.array([np.sign(phase)], np.float32)

    def name(self, index):
        return f"wave_{index:03d}.png"


class ToyTask(Task):
    name = "toy"
    title = "Toy"
    loss_names = ("loss", "error")
    config_class = ToyConfig
    default_config = None

    def build_network(self, config, ranks):
        rng = np.random.default_rng(config.seed)
        network = ToyNetwork(config.dropout, ranks.rank)
        for parameter in network.trainable_params():
            if parameter.ndim > 1:
                parameter.set_data(Tensor(rng.normal(0, 0.2, parameter.shape).astype(np.float32)))
            elif parameter.name.endswith("bias"):
                parameter.set_data(Tensor(np.zeros(parameter.shape, np.float32)))
        return network

    def build_train_cell(self, network, config, ranks):
        return ToyTrainCell(network)

    def build_dataset(self, config, split):
        count = config.data.samples if split == "train" else config.data.validation
        return Waves(config, count) if count else None

    def evaluate(self, network, dataset, config, ranks, output=None):
        # Lets a test kill the process here; see test_training.
        if pause := float(os.environ.get("TOY_EVALUATION_PAUSE", "0")):
            print("evaluating", flush=True)
            time.sleep(pause)
        sampler = EvaluationSampler(len(dataset), 8, ranks)
        errors = np.zeros(len(sampler.indices), np.float32)
        done = 0
        for x, target in Loader(dataset, sampler).batches(0, len(sampler)):
            size = len(x)
            x = np.resize(x, (8, *x.shape[1:]))
            y = network(Tensor(x)).asnumpy()[:size]
            errors[done : done + size] = np.abs(y - target)[:, 0]
            done += size
        errors = gather_parts(errors, sampler.indices, len(dataset), ranks)
        return {"error": float(errors.mean())}

    def better(self, metrics):
        return -metrics["error"]

    def export_inputs(self, config):
        from model_utils.exporting import ExportInput

        return [ExportInput("image", (config.export.batch_size or None, 1, 8, 8))]

    def export_cell(self, network, config):
        return network, ["sign"]

    def infer(self, config, output):
        raise NotImplementedError

    def generate(self, folder, seed):
        raise NotImplementedError

    def quickstart(self, folder):
        raise NotImplementedError
