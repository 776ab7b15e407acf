"""PFNet from Python: aerial images in, class numbers out."""

from collections.abc import Sequence

import numpy as np

from model_utils.exporting import ExportInput
from model_utils.segmentation import ClassTable
from model_utils.segmenting import Segmenter, to_classes

from .augment import resize_image
from .config import PFNetInfer
from .dataset import class_table
from .multiscale import Protocol, least_side, mean_logits, padded_size
from .network import STRIDE
from .prediction import Prediction
from .task import PFNetTask, class_count


class PFSegNets(Segmenter):
    """Aerial segmentation with PFNet.

    Example::

        model = PFSegNets.from_checkpoint("best.ckpt")
        classes = model.predict(image)                   # (H, W) uint8
        scores = model.scores(image, scales=(0.75, 1.0), flip=True)
        logits = model.logits(image, window=896)         # sliding windows
    """

    task_class = PFNetTask
    stride = STRIDE
    multiple = STRIDE

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

    def outputs(self, form: str, images: np.ndarray) -> np.ndarray:
        """What the prediction build gives for normalised images (N, 3, H, W).

        The number of points and the pooling windows follow from the size, so that every size has
        a graph of its own. With backend ``auto`` the first size gets the fastest backend, which
        may mean a file in the cache; others run in MindSpore.

        Args:
            form: of ``Prediction``: logits, scores or classes. An exported file gives what it was
                exported with.
            images: float32, sides multiples of 32.
        """
        if self.network is None:
            return super().outputs(form, images)
        height, width = images.shape[2:]
        self.network.check_size(height, width)
        batch = self.config.infer.batch_size
        part = f"{form} of {batch}x{height}x{width}"
        others = any(opened.startswith(f"{form} of") for opened in self._opened)
        backend = self.open(
            part,
            lambda: self.prediction(form),
            [ExportInput("image", (batch, 3, height, width))],
            "mindspore" if others and self.requested == "auto" else "",
        )
        results = []
        for first in range(0, len(images), batch):
            group = images[first : first + batch]
            filled = group[np.arange(batch) % len(group)] if len(group) < batch else group
            results.append(backend.run(filled)[0][: len(group)])
        return np.concatenate(results)

    @property
    def least(self) -> int:
        """Shortest side that the network takes; the only one of a file exported for squares."""
        shape = self.open("file", None, []).input_shape if self.network is None else None
        if shape and shape[2] and shape[2] == shape[3]:
            return int(shape[2])
        return least_side(self.config)

    def fitting(self, size: tuple[int, int]) -> tuple[int, int]:
        """The smallest height and width not below ``size`` that the network takes."""
        return padded_size(size, self.least)

    def logits(
        self,
        image: np.ndarray,
        scales: tuple[float, ...] = (1.0,),
        flip: bool = False,
        window: int = 0,
        overlap: float = 1 / 3,
    ) -> np.ndarray:
        """Mean of an image's logits, (K, H, W) float32, as evaluation averages them.

        Args:
            image: as for ``predict``.
            scales: zooms.
            flip: also of the mirrored image.
            window: side of sliding windows; 0 scores the whole image at once.
            overlap: of neighbouring windows, a share below 1 or pixels.
        """
        protocol = Protocol(tuple(scales), flip, window, overlap, self.least)
        return mean_logits(self.run_network, self.normalise(image), protocol)

    def scores(
        self, image: np.ndarray, scales: tuple[float, ...] = (1.0,), flip: bool = False
    ) -> np.ndarray:
        """Class probabilities.

        Args:
            image: as for ``predict``.
            scales: zooms whose logits are averaged.
            flip: average with the mirrored image.

        Returns:
            (K, H, W) float32 in [0, 1], summing to 1 over the classes.
        """
        logits = self.logits(image, scales, flip)
        values = np.exp(logits - logits.max(axis=0))
        return values / values.sum(axis=0)

    def segment(self, images: Sequence[np.ndarray], names: Sequence[object]) -> np.ndarray:
        """Class maps (N, H, W) uint8 of images of one size, as infer.py makes them.

        With ``infer.resize`` images are resized as in training, and logits back.

        Args:
            images: (H, W, 3) RGB uint8.
            names: what to call them in messages.
        """
        keys: PFNetInfer = self.config.infer
        if not keys.resize:
            return super().segment(images, names)
        size = (keys.resize, keys.resize)
        maps = []
        for image in images:
            logits = self.logits(resize_image(image, size), tuple(keys.scales), keys.flip)
            maps.append(to_classes(logits, (image.shape[0], image.shape[1])))
        return np.stack(maps)
