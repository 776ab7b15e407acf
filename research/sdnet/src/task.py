"""SDNet as the engine sees it."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor

from model_utils.data import EvaluationSampler, Loader
from model_utils.distributed import GatherRanks, Ranks, gather_parts
from model_utils.errors import UserError
from model_utils.exporting import ExportInput
from model_utils.logs import Progress
from model_utils.metrics.ranking import ranking_metrics
from model_utils.task import QuickStart, Step, Task
from model_utils.training import Epoch

from .config import SDNetConfig
from .dataset import Augmentation, ImagePairDataset, PatchDataset
from .losses import SDNetLoss, SDNetTrainCell
from .metrics import accuracy_line, descriptor_distances, epoch_line, inference_lines
from .network import DescriptorOnly, SDNetNetwork
from .patches import PATCH_SIZE, find_archive, has_archive
from .preparing import PrepareOptions, list_pairs, prepare, split_pairs

log = logging.getLogger("zoo")
OUTPUTS = ["opt_e", "sar_e", "opt_lower_nor", "sar_lower_nor", "opt_recon", "sar_recon"]


class SDNetTask(Task):
    """Optical-SAR patch matching (Quan et al. 2022)."""

    name = "sdnet"
    title = "SDNet"
    loss_names = ("loss", "matching", "ranking", "reconstruction")
    config_class = SDNetConfig
    default_config = "sen1-2_config"
    infer_example = "--checkpoint_path=FILE --optical=A.png --sar=B.png"

    def build_network(self, config: SDNetConfig, ranks: Ranks) -> SDNetNetwork:
        """The network, initialised as upstream's."""
        return SDNetNetwork(config.dropout, ranks.rank, config.seed)

    def build_train_cell(
        self, network: SDNetNetwork, config: SDNetConfig, ranks: Ranks
    ) -> SDNetTrainCell:
        """Network and losses."""
        keys = config.loss
        loss = SDNetLoss(
            keys.margin, keys.anchor_swap, keys.temperature, keys.reconstruction, keys.ranking
        )
        shared = ranks.size > 1 and keys.negatives == "global"
        return SDNetTrainCell(network, loss, GatherRanks(ranks) if shared else None)

    def build_dataset(
        self, config: SDNetConfig, split: str
    ) -> PatchDataset | ImagePairDataset | None:
        """Patches of a split: optical, SAR (1, 64, 64) in [-1, 1], label."""
        keys = config.data
        if split == "train" and keys.images:
            return self._cut_from_images(config)
        if not keys.root:
            raise UserError("no data given; add --data_path=FOLDER, as prepare_data.py writes it")
        if split != "train" and Path(keys.root).is_dir() and not has_archive(keys.root, split):
            return None
        return PatchDataset(
            find_archive(keys.root, split),
            keys.image_size,
            keys.mean_image,
            keys.std_image,
            augment=split == "train" and keys.archive_symmetries,
            require_matching=split == "train",
        )

    def _cut_from_images(self, config: SDNetConfig) -> ImagePairDataset:
        keys = config.data
        pairs = list_pairs(keys.images, keys.optical, keys.sar, keys.pair_list, keys.scene_pattern)
        if (Path(keys.images) / "train.txt").is_file():
            pairs = split_pairs(pairs, PrepareOptions(splits=keys.images))["train"]
        else:
            log.warning(
                "%s has no train.txt: windows come from all %d image pairs", keys.images, len(pairs)
            )
        return ImagePairDataset(
            pairs,
            keys.windows,
            keys.centres,
            keys.detect,
            keys.min_distance,
            Augmentation(**vars(keys.augment)),
            keys.image_size,
            keys.mean_image,
            keys.std_image,
        )

    def validation_split(self, config: SDNetConfig) -> str:
        """``val`` if there is one; the ModelZoo's data has only ``test``."""
        return "val" if has_archive(config.data.root, "val") else "test"

    def train_inputs(self, batch: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """Optical and SAR patches; every row is a true pair, its label is not needed."""
        return batch[:2]

    def evaluate(
        self,
        network: SDNetNetwork,
        dataset: PatchDataset,
        config: SDNetConfig,
        ranks: Ranks,
        output: Path | None = None,
    ) -> dict[str, Any]:
        """FPR95, accuracy and AUC over all pairs of the data set."""
        size = config.evaluate.batch_size
        sampler = EvaluationSampler(len(dataset), size, ranks)
        loader = Loader(dataset, sampler, config.seed, config.data.workers)
        cell = self._descriptor(network)
        distances = np.zeros(len(sampler.indices), np.float32)
        labels = np.zeros(len(sampler.indices), np.int32)
        progress = Progress(len(distances), "evaluating", show=ranks.first, unit="pair")
        done = 0
        for opt, sar, label in loader.batches(0, len(sampler)):
            count = len(label)
            # One shape, one compiled graph: the last batch is filled up and cut back.
            opt, sar = (np.resize(part, (size, *part.shape[1:])) for part in (opt, sar))
            opt_e, sar_e = cell(Tensor(opt), Tensor(sar))
            distances[done : done + count] = descriptor_distances(
                opt_e.asnumpy()[:count], sar_e.asnumpy()[:count]
            )
            labels[done : done + count] = label
            done += count
            progress.advance(count)
        progress.close()
        distances = gather_parts(distances, sampler.indices, len(dataset), ranks)
        labels = gather_parts(labels, sampler.indices, len(dataset), ranks)
        metrics = ranking_metrics(distances, labels)
        if output is not None:
            from .report import write_report

            write_report(output, dataset, distances, labels, config.evaluate.pictures)
        return metrics

    def _descriptor(self, network: SDNetNetwork) -> DescriptorOnly:
        """One Cell per network, so that evaluating again does not compile again."""
        if getattr(self, "_described", None) is not network:
            self._described, self._cell = network, DescriptorOnly(network)
        self._cell.set_train(False)
        return self._cell

    def better(self, metrics: Mapping[str, Any]) -> float:
        """Lower FPR95; AUC, which is finer, decides between equals."""
        return -float(metrics["fpr95"]) + 1e-6 * float(metrics["auc"])

    def epoch_line(self, epoch: Epoch) -> str:
        """The ModelZoo's line, verbatim."""
        return epoch_line(
            epoch.number,
            epoch.total,
            epoch.seconds * 1000,
            epoch.steps,
            epoch.losses["loss"],
            epoch.lr,
        )

    def metrics_line(self, metrics: Mapping[str, Any]) -> str:
        """The ModelZoo's line, verbatim."""
        return accuracy_line(dict(metrics))

    def evaluation_lines(self, metrics: Mapping[str, Any], device: str) -> list[str]:
        """The ModelZoo's three lines."""
        return inference_lines(dict(metrics), device)

    def export_inputs(self, config: SDNetConfig) -> list[ExportInput]:
        """Two patches; 0 samples stands for any number."""
        for side in (config.export.height, config.export.width):
            if side not in (0, PATCH_SIZE):
                raise UserError(f"SDNet exists for patches of {PATCH_SIZE} pixels, not {side}")
        shape = (config.export.batch_size or None, 1, PATCH_SIZE, PATCH_SIZE)
        return [ExportInput("opt_img", shape), ExportInput("sar_img", shape)]

    def export_cell(self, network: SDNetNetwork, config: SDNetConfig) -> tuple[Any, list[str]]:
        """All six outputs as upstream, or the two that matching needs."""
        if config.export.descriptor_only:
            return DescriptorOnly(network), OUTPUTS[:2]
        return network, OUTPUTS

    def rename_parameter(self, name: str) -> str:
        """Checkpoints of the ModelZoo carry wrapper prefixes before ``model``."""
        for prefix in ("model_L.", "model_D.", "model."):
            place = name.find(prefix)
            if place > 0 and name[place - 1] == ".":
                return name[place:]
        return name

    def infer(self, config: SDNetConfig, output: Path) -> None:
        """Match two images and draw the matches."""
        from .api import SDNet

        SDNet.run(config, output)

    def prepare(self, config: SDNetConfig, output: Path) -> None:
        """Cut patch archives out of registered images."""
        keys = config.data
        pairs = list_pairs(keys.root, keys.optical, keys.sar, keys.pair_list, keys.scene_pattern)
        prepare(pairs, output, config.prepare)

    def generate(self, folder: Path, seed: int) -> None:
        """A small SEN1-2."""
        from .generator import generate

        generate(folder, seed=seed)

    def quickstart(self, folder: Path) -> list[Step]:
        """A small SEN1-2, its patches, a short training, everything that follows."""
        data = folder / "sen1-2"
        run = QuickStart(folder, folder / "patches", trained=())
        example = "ROIs1158_spring/{0}_0/ROIs1158_spring_{0}_0_p0.png"
        return [
            run.generate("generate SEN1-2 images", data),
            run.prepare("cut patches around SIFT keypoints", "prepare_data.py", data),
            run.train(),
            run.evaluate(),
            run.export("export to MINDIR", "MINDIR"),
            run.export("export to ONNX, any batch size", "ONNX", "--batch_size=0"),
            run.infer(
                "match two images",
                f"--optical={data / example.format('s2')}",
                f"--sar={data / example.format('s1')}",
            ),
        ]
