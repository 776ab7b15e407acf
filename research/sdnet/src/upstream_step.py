"""How the published code steps, for the benchmark: every gradient costs a forward of its own."""

from mindspore import Tensor, nn, ops

from .losses import SDNetTrainCell


class _Total(nn.Cell):
    """The weighted sum of the losses."""

    def __init__(self, cell: SDNetTrainCell) -> None:
        super().__init__(auto_prefix=False)
        self.cell = cell

    def construct(self, opt: Tensor, sar: Tensor) -> Tensor:
        return self.cell(opt, sar)[0]


class _PartStep(nn.Cell):
    """Forward, backward and Adam for the parameters of one part."""

    def __init__(self, total: _Total, part: nn.Cell, lr: float) -> None:
        super().__init__(auto_prefix=False)
        self.total = total
        self.optimizer = nn.Adam(part.trainable_params(), lr, 0.5, 0.9, 1e-8, weight_decay=1e-4)
        self.weights = self.optimizer.parameters
        self.gradient = ops.GradOperation(get_by_list=True)

    def construct(self, opt: Tensor, sar: Tensor) -> bool:
        return self.optimizer(self.gradient(self.total, self.weights)(opt, sar))


class UpstreamStep(nn.Cell):
    """Loss from one forward, then a forward, a backward and an Adam for each of three parts.

    BatchNorm statistics and dropout so advance four times per step. Nothing but the benchmark
    uses this.

    Args:
        cell: network and losses.
        lr: learning rate.
    """

    def __init__(self, cell: SDNetTrainCell, lr: float = 0.004) -> None:
        super().__init__(auto_prefix=False)
        self.total = _Total(cell)
        network = cell.network
        self.describe = _PartStep(self.total, network.model, lr)
        self.lower = _PartStep(self.total, network.model_L, lr)
        self.decode = _PartStep(self.total, network.model_D, lr)

    def construct(self, opt: Tensor, sar: Tensor) -> Tensor:
        """One step on patches (N, 1, 64, 64); returns the total loss."""
        loss = self.total(opt, sar)
        loss = ops.depend(loss, self.describe(opt, sar))
        loss = ops.depend(loss, self.lower(opt, sar))
        return ops.depend(loss, self.decode(opt, sar))
