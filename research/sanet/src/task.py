"""SANet as the engine sees it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mindspore import nn

from model_utils.distributed import Ranks
from model_utils.errors import UserError
from model_utils.exporting import ExportInput
from model_utils.segmentation_data import count_classes
from model_utils.task import QuickStart, Step, Task, require_batch_statistics

from .config import SANetConfig
from .dataset import build_dataset, class_table
from .evaluation import evaluate, evaluate_classifier, protocol_lines
from .imagenet import IMAGENET_CLASSES
from .losses import ClassifierTrainCell, SANetLoss, SANetTrainCell
from .network import SANetClassifier, SANetNetwork
from .prediction import Prediction

SEGMENTATION_LOSSES = ("loss", "aux", "main", "boundary", "boundary_aware", "accuracy")


def class_count(config: SANetConfig) -> int:
    """How many classes the network tells apart.

    Raises:
        UserError: another number is asked for than the data has.
    """
    return count_classes(config, class_table)


class SANetTask(Task):
    """Real-time street segmentation (Wang et al. 2023), and its ImageNet pretraining."""

    name = "sanet"
    title = "SANet"
    loss_names = SEGMENTATION_LOSSES
    config_class = SANetConfig
    default_config = "cityscapes_s"
    infer_example = "--checkpoint_path=FILE --images=PHOTO.jpg"
    # DataParallel's FullModel wraps the network; L's and S's checkpoints hold layers that the
    # forward pass never uses.
    reference_prefixes = ("model.",)
    reference_unused = (
        r"spp\.process\d\..*|seghead_d2\..*|fc\..*|classifier\..*|sem_loss\..*|sb_loss\..*"
    )

    def build_network(self, config: SANetConfig, ranks: Ranks) -> SANetNetwork | SANetClassifier:
        """The network, initialised as upstream's."""
        if config.task == "classification":
            self.loss_names = ("loss", "accuracy")  # type: ignore[misc]
            return SANetClassifier(
                config.variant,
                config.classes or IMAGENET_CLASSES,
                config.pooling,
                config.attention,
                config.seed,
                ranks.rank,
            )
        return SANetNetwork(
            config.variant,
            class_count(config),
            config.pooling,
            config.attention,
            config.seed,
        )

    def build_train_cell(
        self, network: nn.Cell, config: SANetConfig, ranks: Ranks
    ) -> SANetTrainCell | ClassifierTrainCell:
        """Network and losses.

        Raises:
            UserError: batches of a single image, or class weights for another number of classes.
        """
        require_batch_statistics(config, ranks)
        if config.task == "classification":
            return ClassifierTrainCell(network)
        keys, classes = config.loss, class_count(config)
        loss = SANetLoss(
            classes,
            keys.aux,
            keys.main,
            keys.boundary,
            keys.boundary_aware,
            keys.boundary_threshold,
            keys.ohem,
            keys.ohem_threshold,
            keys.ohem_keep,
            keys.class_weights,
        )
        return SANetTrainCell(network, loss)

    def build_dataset(self, config: SANetConfig, split: str) -> Any:
        """Images, labels and edges of a split; of ImageNet images and class numbers."""
        return build_dataset(config, split)

    def evaluate(
        self,
        network: nn.Cell,
        dataset: Any,
        config: SANetConfig,
        ranks: Ranks,
        output: Path | None = None,
    ) -> dict[str, Any]:
        """Mean IoU, accuracies and boundary F-score; top-1 and top-5 for classification."""
        if config.task == "classification":
            return evaluate_classifier(network, dataset, config, ranks)
        return evaluate(network, dataset, config, ranks, output)

    def better(self, metrics: Mapping[str, Any]) -> float:
        """Mean IoU, or top-1 accuracy."""
        return float(metrics["miou"] if "miou" in metrics else metrics["top1"])

    def evaluation_lines(self, metrics: Mapping[str, Any], device: str) -> list[str]:
        """The protocol, the figures, one line per class."""
        return protocol_lines(metrics) or [self.metrics_line(metrics)]

    def export_inputs(self, config: SANetConfig) -> list[ExportInput]:
        """Normalised images; 0 stands for any number or size."""
        keys = config.export
        shape = (keys.batch_size or None, 3, keys.height or None, keys.width or None)
        return [ExportInput("image", shape)]

    def export_cell(self, network: SANetNetwork, config: SANetConfig) -> tuple[Any, list[str]]:
        """The prediction build: logits at 1/8, scores or class numbers at the input's size."""
        if config.task == "classification":
            raise UserError(
                "the ImageNet build only serves pretraining and is not exported; use "
                "task=segmentation with a checkpoint trained so"
            )
        return Prediction(network, config.export.output), [config.export.output]

    def infer(self, config: SANetConfig, output: Path) -> None:
        """Segment images and draw the results."""
        from .api import SANet

        SANet.run(config, output)

    def generate(self, folder: Path, seed: int) -> None:
        """A small Cityscapes."""
        from .generator import generate

        generate(folder, seed)

    def quickstart(self, folder: Path) -> list[Step]:
        """A small Cityscapes, a short training, everything that follows."""
        data = folder / "cityscapes"
        run = QuickStart(folder, data)
        return [
            run.generate("generate Cityscapes images", data),
            run.train(),
            run.evaluate(),
            run.export("export to MINDIR", "MINDIR"),
            run.export(
                "export class numbers to ONNX, any size",
                "ONNX",
                "--batch_size=0",
                "--height=0",
                "--width=0",
                "--export.output=classes",
            ),
            run.infer("segment images", f"--images={data / 'leftImg8bit/val'}"),
        ]
