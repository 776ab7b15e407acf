"""SDNet's figures of merit and the lines in which they are logged."""

import numpy as np

from model_utils.errors import UserError

RED, PLAIN = "\033[91m", "\033[0m"


def descriptor_distances(optical: np.ndarray, sar: np.ndarray) -> np.ndarray:
    """Euclidean distances between rows: (N, D) and (N, D) descriptors to (N,) float32.

    Raises:
        UserError: the shapes differ.
    """
    if optical.ndim != 2 or optical.shape != sar.shape:
        raise UserError(f"descriptors {optical.shape} and {sar.shape} must be equal (N, D) arrays")
    # Differences, not the dot-product formula: the latter loses half the digits near zero.
    return np.sqrt(np.square(optical - sar).sum(axis=1))


def accuracy_line(metrics: dict[str, float], colour: bool = False) -> str:
    """``Accuracy(FPR95): 0.35339745  Acc:0.87125515``, the published log line.

    Args:
        metrics: with the keys ``fpr95`` and ``acc`` (accuracy at the positive count).
        colour: red by ANSI codes; only for terminals, so that logs stay readable by programs.
    """
    line = f"Accuracy(FPR95): {metrics['fpr95']:.8f}  Acc:{metrics['acc']:.8f}"
    return f"{RED}{line}{PLAIN}" if colour else line


def epoch_line(
    epoch: int, epochs: int, milliseconds: float, steps: int, loss: float, rate: float
) -> str:
    """The published line at the end of an epoch.

    ``epoch: [  1/ 20], epoch time: 654675.890, steps:  1167, per step time: 560.990,
    avg loss: 1.039, lr:[0.003800]`` on one line.

    Args:
        epoch: number of the epoch, from 1.
        epochs: how many there are.
        milliseconds: duration of the epoch without evaluation.
        steps: steps of the epoch.
        loss: mean over all its steps.
        rate: learning rate of its last step.
    """
    return (
        f"epoch: [{epoch:3d}/{epochs:3d}], epoch time: {milliseconds:5.3f}, "
        f"steps: {steps:5d}, per step time: {milliseconds / max(steps, 1):5.3f}, "
        f"avg loss: {loss:5.3f}, lr:[{rate:8.6f}]"
    )


def inference_lines(metrics: dict[str, float], device: str, colour: bool = False) -> list[str]:
    """The three lines ``eval.py`` prints: a heading with the device, the figures, a rule."""
    return [f"============= {device} Inference =============", accuracy_line(metrics, colour),
            "=" * 41]  # fmt: skip
