"""SANet from Python: images in, class numbers out."""

from pathlib import Path
from typing import Any

import numpy as np

from model_utils.errors import UserError
from model_utils.segmentation import ClassTable
from model_utils.segmenting import Segmenter

from .config import SANetConfig
from .layouts import class_table
from .multiscale import Protocol, exp_scores
from .prediction import Prediction
from .task import SANetTask, class_count


class SANet(Segmenter):
    """Street segmentation.

    Example::

        model = SANet.from_checkpoint("best.ckpt")
        classes = model.predict(image)                   # (H, W) uint8
        scores = model.scores(image, scales=(0.75, 1.0), flip=True)
    """

    task_class = SANetTask
    stride = 64

    def __init__(
        self, source: Path, config: SANetConfig, backend: str, network: Any = None
    ) -> None:
        if config.task != "segmentation":
            raise UserError(
                "the ImageNet build tells no pixels apart; use task=segmentation with a checkpoint "
                "trained so"
            )
        super().__init__(source, config, backend, network)

    @property
    def classes(self) -> ClassTable:
        """Names and colours of the classes."""
        return class_table(self.config)

    @property
    def class_count(self) -> int:
        """How many classes the network tells apart."""
        return class_count(self.config)

    def prediction(self, form: str) -> Prediction:
        """The prediction build as a Cell."""
        return Prediction(self.network, form)

    def scores(
        self, image: np.ndarray, scales: tuple[float, ...] = (1.0,), flip: bool = False
    ) -> np.ndarray:
        """Class probabilities.

        Args:
            image: as for ``predict``.
            scales: zooms whose scores exp(logits) are added, as in multi-scale evaluation.
            flip: average the logits with those of the mirrored image.

        Returns:
            (K, H, W) float32 in [0, 1], summing to 1 over the classes.
        """
        total = exp_scores(self.run_network, self.normalise(image), Protocol(tuple(scales), flip))
        return total.values / total.values.sum(axis=0)
