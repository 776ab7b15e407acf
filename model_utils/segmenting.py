"""The Python API that segmentation networks share: images and whole scenes in, classes out."""

import itertools
import json
import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from model_utils.augmentation import Normalisation
from model_utils.drawing import legend, overlay
from model_utils.errors import UserError
from model_utils.exporting import ExportInput
from model_utils.files import PathLike, read_image, sha256, write_image, write_json
from model_utils.logs import Progress
from model_utils.predictor import Predictor
from model_utils.scenes.config import SceneConfig
from model_utils.segmentation import IMAGE_SUFFIXES, ClassTable, list_images, to_eight_bits
from model_utils.windows import fill_up, resize_aligned

if TYPE_CHECKING:
    from model_utils.scenes.engine import SceneNetwork, SceneReport
    from model_utils.scenes.source import Patch

log = logging.getLogger("zoo")
SegmenterT = TypeVar("SegmenterT", bound="Segmenter")
DEFAULT_WEIGHTS = "outputs/train/best.ckpt"


class Segmenter(Predictor):
    """A network that gives every pixel a class.

    Subclasses name their task, their classes and their prediction build, and say how they are
    evaluated at several scales.

    Attributes:
        stride: product of the network's strides; tiles of scenes begin at its multiples.
        multiple: heights and widths that the network takes are multiples of this; smaller images
            are filled up by reflection at the bottom and the right, and results cut.
    """

    stride: ClassVar[int] = 1
    multiple: ClassVar[int] = 1

    @property
    @abstractmethod
    def classes(self) -> ClassTable:
        """Names and colours of the classes."""

    @property
    @abstractmethod
    def class_count(self) -> int:
        """How many classes the network tells apart."""

    @abstractmethod
    def prediction(self, form: str) -> Any:
        """The prediction build as a Cell: images (N, 3, H, W) to ``form``.

        Args:
            form: logits, scores (N, K, H, W) or classes (N, H, W).
        """

    @abstractmethod
    def scores(
        self, image: np.ndarray, scales: tuple[float, ...] = (1.0,), flip: bool = False
    ) -> np.ndarray:
        """Class probabilities (K, H, W) float32 of an image, at several scales if wanted."""

    # Arrays ----------------------------------------------------------------------------------

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
                f"{name} has shape {image.shape}; {self.task_class.title} takes (height, "
                "width, 3) RGB or (height, width) grey images"
            )
        data = self.config.data
        normalisation = Normalisation(tuple(data.mean), tuple(data.std))
        return normalisation(to_eight_bits(image, Path(str(name))))

    def run_network(self, images: np.ndarray) -> np.ndarray:
        """Logits (N, K, h, w) of normalised images (N, 3, H, W), at the network's resolution.

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
            form: logits, scores or classes. An exported file gives what it was exported with.
            images: float32, of heights and widths that the network takes.
        """
        if self.network is None:
            backend = self.open("file", None, [])
        else:
            inputs = [ExportInput("image", (None, 3, None, None))]
            backend = self.open(form, lambda: self.prediction(form), inputs)
        return self.checked(backend.run(images)[0])

    def checked(self, output: np.ndarray) -> np.ndarray:
        """What a backend gave, if it fits the configured classes.

        Args:
            output: logits or scores (N, K, h, w), or class numbers (N, H, W).

        Raises:
            UserError: an exported file of another number of classes.
        """
        if self.network is None:
            classes = self.class_count
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
        filled = fill_up(images, self.fitting((images.shape[2], images.shape[3])))
        size = (filled.shape[2], filled.shape[3])
        maps = np.stack([to_classes(found, size) for found in self.outputs("classes", filled)])
        return maps[:, : images.shape[2], : images.shape[3]]

    def fitting(self, size: tuple[int, int]) -> tuple[int, int]:
        """The smallest height and width not below ``size`` that the network takes."""
        multiple = self.multiple
        return -(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple

    def predict(self, image: np.ndarray) -> np.ndarray:
        """Class of every pixel, at a single scale.

        Args:
            image: (H, W, 3) RGB or (H, W) grey, 8 or 16 bits, of any size.

        Returns:
            (H, W) uint8.
        """
        return self.class_maps(self.normalise(image)[None])[0]

    # Whole scenes ----------------------------------------------------------------------------

    def predict_scene(
        self,
        scene: PathLike,
        target: PathLike,
        settings: SceneConfig | None = None,
        batch: int = 1,
        show: bool = True,
    ) -> "SceneReport":
        """Segment a raster of any size into a GeoTIFF at the same place.

        Args:
            scene: whatever GDAL reads.
            target: the GeoTIFF to write: class numbers with colours and names, or probabilities.
            settings: tiles, blending, output; default the configuration's.
            batch: tiles at once.
            show: report progress.

        Raises:
            UserError: see ``model_utils.scenes.engine.predict_scene``.
        """
        from model_utils.scenes.engine import predict_scene
        from model_utils.scenes.store import Layers

        keys: SceneConfig = self.config.infer.scene if settings is None else settings
        kind, table = keys.result, self.classes
        dtype = keys.probability_type if kind == "probabilities" else "uint8"
        shape = self.open("file", None, []).input_shape if self.network is None else None
        return predict_scene(
            scene,
            target,
            self.scene_network(keys),
            Layers(kind, table.names, table.colours, dtype),
            keys,
            (shape[0] if shape else None) or batch,
            {"NETWORK": self.task_class.title, "WEIGHTS": self.source.name},
            show,
        )

    def scene_network(self, keys: SceneConfig) -> "SceneNetwork":
        """The network as the engine for scenes runs it."""
        from model_utils.scenes.engine import SceneNetwork

        data = self.config.data
        shape = self.open("file", None, []).input_shape if self.network is None else None
        sides = shape[2:] if shape else (None, None)
        mean, std = list(data.mean), list(data.std)

        def prepare(patches: "list[Patch]") -> tuple[np.ndarray, ...]:
            from model_utils.scenes.source import eight_bits

            image = Normalisation(tuple(mean), tuple(std)).planes(
                eight_bits(patches[0], keys.value_range)
            )
            if not patches[0].valid.all():
                image[:, ~patches[0].valid] = 0  # the mean colour
            return (image,)

        def scores(images: np.ndarray) -> np.ndarray:
            found = self.outputs("scores", images)
            return (
                resize_aligned(found, (images.shape[2], images.shape[3]))
                if found.ndim == 4
                else found
            )

        settings = json.dumps(self.task_class().settings(self.config))
        only_classes = keys.result == "classes" and keys.blend == "flat"
        return SceneNetwork(
            prepare,
            self.class_maps if only_classes else scores,
            f"{self.task_class.title} {sha256(self.source)[:16]} {mean} {std} {settings}",
            multiple=self.multiple,
            least=self.fitting((1, 1))[0],
            align=self.stride,
            fixed=(sides[0], sides[1]) if sides[0] and sides[1] else None,
        )

    @classmethod
    def run_scenes(cls: type[SegmenterT], config: Any, output: Path) -> dict[str, Any]:
        """infer.py --scene: segment whole scenes; write a GeoTIFF for each.

        Raises:
            UserError: of a folder, in the end, which scenes could not be segmented.
        """
        from model_utils.scenes.source import scene_files

        keys: SceneConfig = config.infer.scene
        files = not_results(scene_files(keys.source), keys.source, output)
        wanted = config.infer
        if wanted.flip or list(wanted.scales) != [1.0] or getattr(wanted, "resize", 0):
            log.warning(
                "whole scenes are segmented at their own scale, not mirrored: infer.scales, "
                "infer.flip and infer.resize have no effect"
            )
        names = result_names(keys.source, files)
        source = config.checkpoint_path or DEFAULT_WEIGHTS
        model = cls.from_checkpoint(source, config.infer.backend, config)
        scenes: dict[str, Any] = {}
        failed: list[Path] = []
        for path in files:
            target = output / f"{names[path]}_{keys.result}.tif"
            try:
                report = model.predict_scene(path, target, keys, config.infer.batch_size)
            except UserError as error:
                if len(files) == 1:
                    raise
                log.error("%s", error)
                failed.append(path)
                continue
            scenes[str(path)] = {"result": str(target), **report.figures(model.classes.names)}
            if report.finished:
                log.info("%s: result in %s", path, target)
        summary = {"scenes": scenes, "network": str(source)}
        write_json(output / "metrics.json", summary)
        _refuse_failed(failed, len(files), "scenes")
        return summary

    # Files -----------------------------------------------------------------------------------

    @classmethod
    def run(cls: type[SegmenterT], config: Any, output: Path) -> dict[str, Any]:
        """infer.py: segment image files; write class numbers, class colours and overlays.

        Raises:
            UserError: of a folder, in the end, which images could not be read.
        """
        keys = config.infer
        if keys.scene.source:
            return cls.run_scenes(config, output)
        files = not_results(image_files(keys.images), keys.images, output)
        names = result_names(keys.images, files)
        source = config.checkpoint_path or DEFAULT_WEIGHTS
        model = cls.from_checkpoint(source, keys.backend, config)
        shares: dict[str, dict[str, float]] = {}
        failed: list[Path] = []
        progress = Progress(len(files), "segmenting", unit="image")
        for path, image, classes in model._segmented(files, failed):
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
        summary = {"images": len(shares), "network": str(source), "shares": shares}
        write_json(output / "metrics.json", summary)
        log.info("%d images segmented; results in %s", len(shares), output)
        _refuse_failed(failed, len(files), "images")
        return summary

    def _segmented(
        self, files: list[Path], failed: list[Path]
    ) -> Iterator[tuple[Path, np.ndarray, np.ndarray]]:
        """File, image (H, W, 3) uint8 and classes (H, W); neighbours of one size at once."""
        for _, group in itertools.groupby(_readable(files, failed), lambda item: item[1].shape):
            while part := list(itertools.islice(group, self.config.infer.batch_size)):
                paths, pictures = zip(*part, strict=True)
                yield from zip(paths, pictures, self.segment(pictures, paths), strict=True)

    def segment(self, images: Sequence[np.ndarray], names: Sequence[object]) -> np.ndarray:
        """Class maps (N, H, W) uint8 of images of one size, as infer.py makes them.

        Args:
            images: (H, W, 3) RGB uint8.
            names: what to call them in messages.
        """
        keys = self.config.infer
        if tuple(keys.scales) == (1.0,) and not keys.flip:
            normalised = [self.normalise(i, n) for i, n in zip(images, names, strict=True)]
            return self.class_maps(np.stack(normalised))
        scores = (self.scores(image, tuple(keys.scales), keys.flip) for image in images)
        return np.stack([each.argmax(axis=0).astype(np.uint8) for each in scores])


def _readable(files: list[Path], failed: list[Path]) -> Iterator[tuple[Path, np.ndarray]]:
    """Files with their images (H, W, 3) uint8; of several, those that cannot be read are noted."""
    for path in files:
        try:
            image = to_eight_bits(read_image(path), path)
        except UserError as error:
            if len(files) == 1:
                raise
            log.error("%s", error)
            failed.append(path)
        else:
            yield path, image


def _refuse_failed(failed: Sequence[Path], count: int, what: str) -> None:
    if failed:
        raise UserError(
            f"{len(failed)} of {count} {what} have no result, as said above: "
            f"{', '.join(map(str, failed))}; replace or remove them and run again"
        )


def image_files(given: PathLike) -> list[Path]:
    """One image, or all images of a folder and the folders below it, in order of name.

    Raises:
        UserError: nothing given, or nothing there.
    """
    if not str(given):
        raise UserError("infer.py needs images: --images=FILE_OR_FOLDER, or --scene=FILE_OR_FOLDER")
    path = Path(given)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path} does not exist; check --images")
    found = list_images(path)
    if not found:
        raise UserError(f"{path} holds no image ({', '.join(IMAGE_SUFFIXES)}); check --images")
    return found


def not_results(files: Sequence[Path], given: PathLike, output: Path) -> list[Path]:
    """The files without those that an earlier run wrote into a folder within the given one.

    Raises:
        UserError: results would lie among the files that they are made of, or none is left.
    """
    top, results = Path(given).resolve(), output.resolve()
    if top.is_dir() and results == top:
        raise UserError(
            f"{given} is input and output folder, so that results would be taken for inputs; "
            "choose another --output_path"
        )
    if not top.is_dir() or not results.is_relative_to(top):
        return list(files)
    kept = [file for file in files if not file.resolve().is_relative_to(results)]
    if not kept:
        raise UserError(f"{given} holds nothing but results, in {output}; check the path")
    return kept


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


def draw_segmentation(
    image: np.ndarray, classes: np.ndarray, table: ClassTable, alpha: float = 0.5
) -> dict[str, np.ndarray]:
    """The pictures of one segmented image.

    Args:
        image: (H, W, 3) RGB uint8.
        classes: (H, W) class of each pixel; 255 (ignored) is black in the map and left out of
            the overlay.
        table: names and colours of the classes.
        alpha: weight of the colours in the overlay, 0 to 1.

    Returns:
        (H, W, 3) uint8 pictures ``map`` and ``overlay``, and ``legend``: the classes in the
        image with their shares of its pixels, largest first.

    Raises:
        UserError: sizes differ or alpha lies outside [0, 1].
    """
    return {
        "map": table.colourise(classes),
        "overlay": overlay(image, classes, table.colours, alpha),
        "legend": class_legend(classes, table),
    }


def class_legend(classes: np.ndarray, table: ClassTable) -> np.ndarray:
    """Colours and names of the classes in a map with their shares, largest first."""
    counts = np.bincount(classes.ravel().astype(np.int64), minlength=256)[: len(table)]
    present = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]]
    if not present:
        return legend(["all pixels ignored"], np.zeros((1, 3), np.uint8))
    shares = [f"{100 * counts[k] / classes.size:.1f} %" for k in present]
    return legend([table.names[k] for k in present], table.colours[present], 1, shares)


def to_classes(result: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Class map (H, W) uint8 of logits or scores (K, h, w), or of a class map of any type."""
    if result.ndim == 3:
        result = resize_aligned(result, size).argmax(axis=0)
    return result.astype(np.uint8)
