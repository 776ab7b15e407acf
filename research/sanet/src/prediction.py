"""What is run after training: the prediction build and its forms for export."""

import mindspore as ms
from mindspore import Tensor, nn, ops

from .network import SANetNetwork


class Prediction(nn.Cell):
    """The network without the heads that only training needs.

    Args:
        network: the whole network.
        output: ``logits`` (N, K, H / 8, W / 8) rounded up; ``scores``, the same resized to
            (N, K, H, W) with aligned corners as evaluation does; or ``classes``, the place of
            the largest score, int32 (N, H, W). Also the output's name in exported files.
    """

    def __init__(self, network: SANetNetwork, output: str = "logits") -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.output = output

    def construct(self, image: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) of any size."""
        _, _, decoded = self.network.features(image)
        logits = self.network.final_layer(decoded)
        if self.output == "logits":
            return logits
        scores = ops.ResizeBilinearV2(True, False)(logits, ops.shape(image)[2:])
        if self.output == "scores":
            return scores
        return ops.Argmax(axis=1, output_type=ms.int32)(scores)
