"""SANet from Python: images in, class numbers out."""

import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model_utils.augmentation import Normalisation
from model_utils.errors import UserError
from model_utils.exporting import ExportInput
from model_utils.files import PathLike, read_image, write_image, write_json
from model_utils.logs import Progress
from model_utils.predictor import Predictor
from model_utils.segmentation import IMAGE_SUFFIXES, ClassTable, list_images, to_eight_bits

from .config import SANetConfig, SANetInfer
from .layouts import class_table
from .multiscale import Protocol, exp_scores
from .prediction import Prediction, to_classes
from .task import SANetTask, class_count
from .tools.segmenting import draw_segmentation

log = logging.getLogger("zoo")


class SANet(Predictor):
    """Street segmentation.

    Example::

        model = SANet.from_checkpoint("best.ckpt")
        classes = model.predict(image)                   # (H, W) uint8
        scores = model.scores(image, scales=(0.75, 1.0), flip=True)
    """

    task_class = SANetTask

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

    def normalise(self, image: np.ndarray, name: object = "the image") -> np.ndarray:
        """An image as the network takes it.

        Args:
            image: (H, W, 3) RGB or (H, W) grey, 8 or 16 bits; grey becomes three equal channels.
            name: what to call it in messages.

        Returns:
            (3, H, W) float32.

        Raises:
            UserError: another shape or type.
        """
        image = np.asarray(image)
        if image.ndim == 2:
            image = np.repeat(image[:, :, None], 3, axis=2)
        if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise UserError(
                f"{name} has shape {image.shape}; SANet takes (height, width, 3) RGB or "
                "(height, width) grey images"
            )
        data = self.config.data
        normalisation = Normalisation(tuple(data.mean), tuple(data.std))
        return normalisation(to_eight_bits(image, Path(str(name))))

    def run_network(self, images: np.ndarray) -> np.ndarray:
        """Main logits (N, K, H / 8, W / 8) of normalised images (N, 3, H, W), float32.

        Raises:
            UserError: the weights are an exported file that gives class numbers only.
        """
        output = self.outputs("logits", images)
        if output.ndim != 4:
            raise UserError(
                f"{self.source} gives class numbers, not scores; export with "
                "--export.output=logits, or use the checkpoint"
            )
        return output

    def outputs(self, form: str, images: np.ndarray) -> np.ndarray:
        """What the prediction build gives for normalised images (N, 3, H, W).

        Args:
            form: of ``Prediction``: logits, scores or classes. An exported file gives what it was
                exported with.
            images: float32.
        """
        if self.network is None:
            backend = self.open("file", None, [])
        else:
            inputs = [ExportInput("image", (None, 3, None, None))]
            backend = self.open(form, lambda: Prediction(self.network, form), inputs)
        return self.checked(backend.run(images)[0])

    def checked(self, output: np.ndarray) -> np.ndarray:
        """What a backend gave, if it fits the configured classes.

        Args:
            output: logits or scores (N, K, h, w), or class numbers (N, H, W).

        Raises:
            UserError: an exported file of another number of classes.
        """
        if self.network is None:
            classes = class_count(self.config)
            found = output.shape[1] if output.ndim == 4 else int(output.max()) + 1
            if found > classes or (output.ndim == 4 and found != classes):
                raise UserError(
                    f"{self.source} tells {'at least ' if output.ndim == 3 else ''}{found} classes "
                    f"apart, the configuration has {classes}; give the one it was trained with "
                    "(--config_path)"
                )
        return output

    def class_maps(self, images: np.ndarray) -> np.ndarray:
        """Class of every pixel (N, H, W) uint8 of normalised images (N, 3, H, W), single scale."""
        size = (images.shape[2], images.shape[3])
        return np.stack([to_classes(found, size) for found in self.outputs("classes", images)])

    def predict(self, image: np.ndarray) -> np.ndarray:
        """Class of every pixel, at a single scale.

        Args:
            image: (H, W, 3) RGB or (H, W) grey, 8 or 16 bits, of any size.

        Returns:
            (H, W) uint8.
        """
        return self.class_maps(self.normalise(image)[None])[0]

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

    @classmethod
    def run(cls, config: SANetConfig, output: Path) -> dict[str, Any]:
        """infer.py: segment image files; write class numbers, class colours and overlays."""
        keys: SANetInfer = config.infer
        files = image_files(keys.images)
        names = result_names(keys.images, files)
        source = config.checkpoint_path or "outputs/train/best.ckpt"
        model = cls.from_checkpoint(source, keys.backend, config)
        shares: dict[str, dict[str, float]] = {}
        progress = Progress(len(files), "segmenting", unit="image")
        for path, image, classes in model._segmented(files):
            stem = output / names[path]
            write_image(Path(f"{stem}_classes.png"), classes)
            pictures = draw_segmentation(image, classes, model.classes, keys.alpha)
            for kind, picture in pictures.items():
                write_image(Path(f"{stem}_{kind}.png"), picture)
            counts = np.bincount(classes.ravel(), minlength=len(model.classes)) / classes.size
            shares[str(path)] = {
                label: round(float(share), 4)
                for label, share in zip(model.classes.names, counts, strict=False)
                if share
            }
            progress.advance()
        progress.close()
        summary = {"images": len(files), "network": str(source), "shares": shares}
        write_json(output / "metrics.json", summary)
        log.info("%d images segmented; results in %s", len(files), output)
        return summary

    def _segmented(self, files: list[Path]) -> Iterator[tuple[Path, np.ndarray, np.ndarray]]:
        """File, image (H, W, 3) uint8 and classes (H, W); neighbours of one size at once."""
        keys: SANetInfer = self.config.infer
        single = tuple(keys.scales) == (1.0,) and not keys.flip
        images = ((path, to_eight_bits(read_image(path), path)) for path in files)
        for _, group in itertools.groupby(images, lambda item: item[1].shape):
            while part := list(itertools.islice(group, keys.batch_size)):
                if single:
                    maps = self.class_maps(np.stack([self.normalise(i, p) for p, i in part]))
                else:
                    scales = tuple(keys.scales)
                    maps = np.stack(
                        [self.scores(i, scales, keys.flip).argmax(axis=0) for _, i in part]
                    )
                for (path, image), classes in zip(part, maps, strict=True):
                    yield path, image, classes.astype(np.uint8)


def image_files(given: PathLike) -> list[Path]:
    """One image, or all images of a folder and the folders below it, in order of name.

    Raises:
        UserError: nothing given, or nothing there.
    """
    if not str(given):
        raise UserError("infer.py needs images: --images=FILE_OR_FOLDER")
    path = Path(given)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path} does not exist; check --images")
    found = list_images(path)
    if not found:
        raise UserError(f"{path} holds no image ({', '.join(IMAGE_SUFFIXES)}); check --images")
    return found


def result_names(given: PathLike, files: Sequence[Path]) -> dict[Path, str]:
    """What results of images are called: the path below the given folder, without suffix.

    Two images that differ in the suffix only keep theirs.

    Args:
        given: the image or folder that was asked for.
        files: of :func:`image_files`.
    """
    top = Path(given) if Path(given).is_dir() else Path(given).parent
    names = {path: path.relative_to(top) for path in files}
    alike = Counter(name.with_suffix("") for name in names.values())
    return {
        path: str(name if alike[name.with_suffix("")] > 1 else name.with_suffix(""))
        for path, name in names.items()
    }
