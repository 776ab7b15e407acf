"""SDNet from Python: describe patches, compare them, match images."""

import csv
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np

from model_utils.backends import Backend
from model_utils.errors import UserError
from model_utils.exporting import ExportInput
from model_utils.files import atomic_write, read_image, write_image, write_json
from model_utils.predictor import Predictor

from .config import SDNetConfig, SDNetInfer
from .dataset import normalise
from .matching import Matches, MatchOptions, draw_matches, register_images
from .network import PATCH_SIZE, OneModality
from .report import draw_registration
from .task import SDNetTask

log = logging.getLogger("zoo")


class SDNet(Predictor):
    """Optical-SAR patch matching.

    Example::

    model = SDNet.from_checkpoint("best.ckpt")
    distances = model.predict(optical_patches, sar_patches)
    matches = model.match(optical_image, sar_image)
    """

    task_class = SDNetTask

    def predict(self, optical: np.ndarray, sar: np.ndarray) -> np.ndarray:
        """Distances of patch pairs; small is alike, the range is 0 to 2.

        Args:
            optical, sar: (N, 64, 64) grey patches of any number type; each is stretched to its
                own range.

        Returns:
            (N,) float32.
        """
        if len(optical) != len(sar):
            raise UserError(f"{len(optical)} optical and {len(sar)} SAR patches make no pairs")
        first, second = self.describe(optical, "opt"), self.describe(sar, "sar")
        return np.sqrt(np.square(first - second).sum(axis=1))

    def describe(self, patches: np.ndarray, modality: str) -> np.ndarray:
        """Unit descriptors.

        Args:
            patches: (N, 64, 64) grey patches of any number type.
            modality: "opt" or "sar".

        Returns:
            (N, 128) float32.

        Raises:
            UserError: another shape, or values that are not finite.
        """
        patches = np.asarray(patches)
        if patches.ndim != 3 or patches.shape[1:] != (PATCH_SIZE, PATCH_SIZE):
            raise UserError(
                f"patches have shape {patches.shape}; SDNet takes (N, {PATCH_SIZE}, {PATCH_SIZE})"
            )
        if not np.isfinite(patches).all():
            raise UserError("a patch holds NaN or infinite values; repair or leave it out")
        keys = self.config.data
        return self.describe_normalised(
            normalise(patches, keys.mean_image, keys.std_image)[:, None], modality
        )

    def describe_normalised(self, patches: np.ndarray, modality: str) -> np.ndarray:
        """The same for (N, 1, 64, 64) float32 patches already in [-1, 1]."""
        if modality not in ("opt", "sar"):
            raise UserError(f"modality '{modality}' is neither opt nor sar")
        backend, place = self._backend(modality)
        # One batch size: MindSpore compiles for each, and exported files may have only one.
        size = backend.batch_size or self.config.infer.batch_size
        results = [np.zeros((0, 128), np.float32)]
        for start in range(0, len(patches), size):
            part = patches[start : start + size]
            full = np.resize(part, (size, *part.shape[1:]))
            inputs = (full,) if self.network is not None else (full, full)
            results.append(backend.run(*inputs)[place][: len(part)])
        return np.concatenate(results)

    def _backend(self, modality: str) -> tuple[Backend, int]:
        """What runs a modality, and which of its outputs is the descriptor."""
        if self.network is not None:
            return self.open(
                modality,
                lambda: OneModality(self.network, modality),
                [ExportInput("patch", (None, 1, PATCH_SIZE, PATCH_SIZE))],
            ), 0
        # An exported file takes both modalities and gives opt_e and sar_e first.
        return self.open("both", None, []), 0 if modality == "opt" else 1

    def match(
        self,
        optical: np.ndarray,
        sar: np.ndarray,
        options: MatchOptions | None = None,
        refine: int = 1,
    ) -> Matches:
        """Corresponding points of two images and the transformation between them.

        Args:
            optical, sar: (H, W) uint8 grey images.
            options: how to match.
            refine: how often to match again on the SAR image resampled by the transformation.
        """
        return register_images(
            optical,
            sar,
            lambda patches: self.describe_normalised(patches, "opt"),
            lambda patches: self.describe_normalised(patches, "sar"),
            options or MatchOptions(),
            rounds=refine,
        )

    @classmethod
    def run(cls, config: SDNetConfig, output: Path) -> dict[str, Any]:
        """infer.py: match two image files; write matches.csv, metrics.json and pictures."""
        keys: SDNetInfer = config.infer
        if not (keys.optical and keys.sar):
            raise UserError("infer.py needs two images: --optical=FILE --sar=FILE")
        source = config.checkpoint_path or "outputs/train/best.ckpt"
        model = cls.from_checkpoint(source, keys.backend, config)
        images = [to_grey8(read_image(path, 1), path) for path in (keys.optical, keys.sar)]
        matches = model.match(images[0], images[1], match_options(keys), keys.refine)
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["optical_x", "optical_y", "sar_x", "sar_y", "distance", "inlier"])
        for row in range(len(matches)):
            writer.writerow(
                [
                    *matches.optical[row].tolist(),
                    *matches.sar[row].tolist(),
                    f"{matches.distances[row]:.6f}",
                    int(matches.inliers[row]),
                ]
            )
        with atomic_write(output / "matches.csv", "w") as stream:
            stream.write(table.getvalue())
        write_image(output / "matches.png", draw_matches(*images, matches))
        if matches.transform is not None:
            write_image(output / "registration.png", draw_registration(*images, matches.transform))
        summary = {
            **matches.summary(),
            "optical": keys.optical,
            "sar": keys.sar,
            "network": str(source),
        }
        write_json(output / "metrics.json", summary)
        if not len(matches):
            log.warning("no matches: are the images of one place, and is one of them empty?")
        log.info(
            "%d matches, %d agree on one %s transformation; results in %s",
            len(matches),
            matches.inlier_count,
            keys.model,
            output,
        )
        return summary


def match_options(keys: SDNetInfer) -> MatchOptions:
    """The matching options among infer.py's keys."""
    return MatchOptions(
        method="search" if keys.registered else "global",
        most=keys.keypoints,
        radius=max(1, keys.search_radius),
        step=keys.step,
        ratio=keys.ratio,
        model=keys.model,
        threshold=keys.ransac,
    )


def to_grey8(image: np.ndarray, name: str = "image") -> np.ndarray:
    """A grey image as uint8; other types are stretched between their 1st and 99th percentile.

    Raises:
        UserError: a value is not finite.
    """
    if image.dtype == np.uint8:
        return image
    values = image.astype(np.float64)
    if not np.isfinite(values).all():
        raise UserError(f"{name} holds NaN or infinite pixels; fill them before matching")
    low, high = np.percentile(values, (1, 99))
    scaled = (values - low) / max(high - low, 1e-12) * 255
    return np.clip(scaled, 0, 255).astype(np.uint8)
