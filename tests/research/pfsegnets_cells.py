"""Cells for PFNet's tests; MindSpore compiles them from their source file."""

import mindspore as ms
from mindspore import nn, ops


class Joined(nn.Cell):
    """What joining.PyramidConv computes, in the published order, with the framework's resizing."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, pad_mode="pad", padding=1)
        self.operator = ops.ResizeBilinearV2(True, False)

    def construct(self, maps):
        parts = (maps[0],)
        for place in range(1, len(maps)):
            parts = (*parts, self.operator(maps[place], maps[0].shape[2:]))
        return self.conv(ops.concat(parts, 1))


class FourMaps(nn.Cell):
    """A Cell of a tuple as a Cell of four maps, which have gradients."""

    def __init__(self, cell):
        super().__init__(auto_prefix=False)
        self.cell = cell

    def construct(self, a, b, c, d):
        return self.cell((a, b, c, d))


class Gradients(nn.Cell):
    """Gradients of a Cell of four maps: by these, then by its parameters."""

    def __init__(self, cell):
        super().__init__(auto_prefix=False)
        self.cell = cell
        self.gradient = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)
        self.weights = ms.ParameterTuple(cell.trainable_params())

    def construct(self, a, b, c, d, sense):
        inputs, weights = self.gradient(self.cell, self.weights)(a, b, c, d, sense)
        return (*inputs, *weights)
