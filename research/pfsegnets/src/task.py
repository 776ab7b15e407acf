"""PFNet as the engine sees it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mindspore import nn

from model_utils.distributed import Ranks
from model_utils.exporting import ExportInput
from model_utils.segmentation_data import count_classes
from model_utils.task import QuickStart, Step, Task, require_batch_statistics

from .backbones import pretrained_name
from .config import PFNetConfig
from .dataset import build_dataset, class_table
from .evaluation import evaluate, protocol_lines
from .losses import PFNetLoss, PFNetTrainCell
from .network import PFNet
from .prediction import Prediction


def class_count(config: PFNetConfig) -> int:
    """How many classes the network tells apart.

    Raises:
        UserError: another number is asked for than the data has.
    """
    return count_classes(config, class_table)


class PFNetTask(Task):
    """Aerial segmentation with PointFlow (Li et al. 2021)."""

    name = "pfsegnets"
    title = "PFNet"
    loss_names = ("loss", "segmentation", "edge_32", "edge_16", "edge_8", "accuracy")
    config_class = PFNetConfig
    default_config = "isaid_r50"
    infer_example = "--checkpoint_path=FILE --images=PHOTO.png"
    # DistributedDataParallel wraps the network.
    reference_prefixes = ("module.",)
    # Of ImageNet checkpoints.
    reference_unused = r"fc\..*"

    def build_network(self, config: PFNetConfig, ranks: Ranks) -> PFNet:
        """The network, initialised as upstream's, before ImageNet weights are loaded over it."""
        return PFNet(
            config.backbone,
            class_count(config),
            tuple(config.psp_sizes),
            config.pool_style,
            config.dropout,
            config.max_pool_size,
            config.avg_pool_size,
            config.edge_points,
            config.match_dim,
            config.point_flow,
            config.freeze_batch_norm,
            config.zero_residual,
            config.seed,
            ranks.rank,
        )

    def build_train_cell(self, network: PFNet, config: PFNetConfig, ranks: Ranks) -> PFNetTrainCell:
        """Network and losses.

        Raises:
            UserError: batches of a single image, crops that are no multiple of 32, or class
                weights for another number of classes.
        """
        if not config.freeze_batch_norm:
            require_batch_statistics(config, ranks, ", or freeze_batch_norm=true")
        crop = config.data.crop_size
        network.check_size(crop, crop)
        keys, classes = config.loss, class_count(config)
        if not config.point_flow:
            self.loss_names = ("loss", "segmentation", "accuracy")  # type: ignore[misc]
        loss = PFNetLoss(
            classes,
            keys.segmentation,
            keys.edge,
            keys.edge_loss,
            keys.ohem,
            keys.ohem_threshold,
            keys.ohem_keep,
            keys.class_weights,
        )
        return PFNetTrainCell(network, loss)

    def build_dataset(self, config: PFNetConfig, split: str) -> Any:
        """Images, labels and edges of a split."""
        return build_dataset(config, split)

    def evaluate(
        self,
        network: nn.Cell,
        dataset: Any,
        config: PFNetConfig,
        ranks: Ranks,
        output: Path | None = None,
    ) -> dict[str, Any]:
        """Mean IoU patch by patch and in whole images, accuracies, boundary F-score."""
        return evaluate(network, dataset, config, ranks, output)

    def better(self, metrics: Mapping[str, Any]) -> float:
        """Mean IoU of the classes present, the published figure."""
        return float(metrics["miou_present"])

    def evaluation_lines(self, metrics: Mapping[str, Any], device: str) -> list[str]:
        """The protocol, the figures, one line per class."""
        return protocol_lines(metrics) or [self.metrics_line(metrics)]

    def export_inputs(self, config: PFNetConfig) -> list[ExportInput]:
        """Normalised images of one size; a batch of 0 stands for any number."""
        keys = config.export
        return [ExportInput("image", (keys.batch_size or None, 3, keys.height, keys.width))]

    def export_cell(self, network: PFNet, config: PFNetConfig) -> tuple[Any, list[str]]:
        """The prediction build: logits at 1/4, scores or class numbers at the input's size."""
        network.check_size(config.export.height, config.export.width)
        return Prediction(network, config.export.output), [config.export.output]

    def settings(self, config: PFNetConfig) -> dict[str, Any]:
        """Windows, points and normalisation: no parameter knows of them."""
        names = ("psp_sizes", "pool_style", "max_pool_size", "avg_pool_size", "edge_points")
        found = {name: getattr(config, name) for name in names}
        return {**found, "data.mean": config.data.mean, "data.std": config.data.std}

    def rename_parameter(self, name: str) -> str:
        """Our name of a tensor in ImageNet checkpoints, whose stem has names of its own."""
        return pretrained_name(name)

    def infer(self, config: PFNetConfig, output: Path) -> None:
        """Segment images and draw the results."""
        from .api import PFSegNets

        PFSegNets.run(config, output)

    def generate(self, folder: Path, seed: int) -> None:
        """A small iSAID, as distributed."""
        from .generator import generate

        generate(folder, seed)

    def quickstart(self, folder: Path) -> list[Step]:
        """A small iSAID, cropping, a short training, everything that follows."""
        data = folder / "isaid"
        run = QuickStart(folder, folder / "patches")
        return [
            run.generate("generate iSAID images", data),
            run.prepare("crop them to patches", "prepare_isaid.py", data),
            run.train(),
            run.evaluate(),
            run.export("export to MINDIR", "MINDIR"),
            run.export("export class numbers to ONNX", "ONNX", "--export.output=classes"),
            run.infer("segment whole scenes", f"--scene={data / 'test' / 'images'}"),
        ]
