"""The benchmark of a folder's networks: inference of each and the training step of one.

A network's ``benchmarking`` module describes them as a :class:`Family`; how they are run is in
:mod:`model_utils.contenders`, how they are timed in :mod:`model_utils.benchmarking`.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from model_utils import benchmarking, contenders
from model_utils.benchmarking import Benchmark, Job, Section, Settings
from model_utils.contenders import Subject, Training, settle

Generator = np.random.Generator


@dataclass(frozen=True)
class Family:
    """Networks of one kind that differ in size.

    Attributes:
        network: their name.
        script: the folder's ``benchmark.py``.
        option: of the command line, which chooses among the subjects by their keys.
        subjects: all of them, each of one image.
        default: keys of those timed unless asked, separated by commas.
        numbers: further options, whole numbers, with default and help; among them ``height``,
            ``width``, ``batch_size`` and ``train_batch``.
        training: the training step of one of the subjects.
        draw_batch: makes the arrays of ``training.types``.
        describe_training: size of the training step's images in words.
        outputs: what the subjects' outputs are called.
        channels: of an image.
        initialize: gives a network weights and statistics as after training.
        check: refuses settings that a network does not take.
    """

    network: str
    script: Path
    option: str
    subjects: Sequence[Subject]
    default: str
    numbers: Mapping[str, tuple[int, str]]
    training: Training
    draw_batch: Callable[[Settings, Generator], dict[str, np.ndarray]]
    describe_training: Callable[[Settings], str]
    outputs: str
    channels: int = 3
    initialize: Callable[[Any, float, Generator], None] = settle
    check: Callable[[Any, Settings], None] = lambda network, settings: None

    @property
    def keys(self) -> list[str]:
        """Of all subjects."""
        return [subject.key for subject in self.subjects]

    def prepare(self, job: Job, seed: int = 0) -> None:
        """Write inputs, weights and exported networks for all contenders."""
        from model_utils import runtime

        runtime.start("CPU")
        rng = np.random.default_rng(seed)
        settings = job.settings
        sides = (settings["height"], settings["width"])
        shape = (settings["batch_size"], self.channels, *sides)
        image = rng.standard_normal(shape).astype(np.float32)
        np.savez(job.folder / "inputs.npz", image=image, **self.draw_batch(settings, rng))
        for subject in self.subjects:
            if subject.key in settings[self.option]:
                network = subject.build_network()
                self.check(network, settings)
                self.initialize(network, subject.gain, rng)
                contenders.write_files(job, subject, network)

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Declare the networks to time and the sizes."""
        parser.add_argument(
            f"--{self.option}", type=self.choose, default=self.default, help="networks to time"
        )
        for name, (default, explanation) in self.numbers.items():
            parser.add_argument(
                f"--{name}", type=benchmarking.positive, default=default, help=explanation
            )

    def choose(self, text: str) -> list[str]:
        """Keys of a list with commas, in the family's order, for argparse.

        Raises:
            argparse.ArgumentTypeError: a key that no subject has.
        """
        wanted = {name.strip().lower() for name in text.split(",")}
        if not wanted <= {key.lower() for key in self.keys}:
            raise argparse.ArgumentTypeError(f"{text} is not a list of {', '.join(self.keys)}")
        return [key for key in self.keys if key.lower() in wanted]

    def describe(self, settings: Settings) -> str:
        """The settings in words."""
        return (
            f"{settings['height']}x{settings['width']}, batch {settings['batch_size']}; training "
            f"{self.training.subject.key} at {self.describe_training(settings)}, batch "
            f"{settings['train_batch']}"
        )

    def benchmark(self) -> Benchmark:
        """A table of each subject's inference, and one of the training step."""
        trained = self.training.subject.key
        return Benchmark(
            network=self.network,
            script=self.script,
            prepare=self.prepare,
            sections=(
                *(self._inference(subject) for subject in self.subjects),
                Section(
                    f"training step of {trained}",
                    contenders.training_rows(self.training),
                    lambda settings: int(settings["train_batch"]),
                    chosen=partial(self._chosen, trained),
                ),
            ),
            unit="images",
            outputs=self.outputs,
            describe=self.describe,
            add_options=self.add_options,
        )

    def _inference(self, subject: Subject) -> Section:
        return Section(
            f"inference of {subject.key}",
            contenders.inference(subject),
            lambda settings: int(settings["batch_size"]),
            compared=True,
            chosen=partial(self._chosen, subject.key),
        )

    def _chosen(self, key: str, settings: Settings) -> bool:
        return key in settings[self.option]


# The batch of a segmentation network's training step: names and PyTorch's types.
SEGMENTATION_BATCH = {"train_image": "float32", "train_label": "int64", "train_edge": "float32"}


def segmentation_batch(
    rng: Generator, shape: tuple[int, int, int], classes: int
) -> dict[str, np.ndarray]:
    """Images, labels in squares of 16 pixels and edges.

    Args:
        rng: draws them.
        shape: (N, H, W).
        classes: K.

    Returns:
        The images (N, 3, H, W) float32; labels (N, H, W) uint8, some 255; edges (N, H, W) uint8,
        0 or 1.
    """
    count, height, width = shape
    squares = rng.integers(0, classes + 1, (count, -(-height // 16), -(-width // 16)))
    label = squares.repeat(16, 1).repeat(16, 2)[:, :height, :width]
    return {
        "train_image": rng.standard_normal((count, 3, height, width)).astype(np.float32),
        "train_label": np.where(label == classes, 255, label).astype(np.uint8),
        "train_edge": (rng.random(shape) < 0.08).astype(np.uint8),
    }
