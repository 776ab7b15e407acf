"""Optimizers by name, restricted to those that compute what their name says on every device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model_utils.config import key
from model_utils.errors import UserError

# nn.AdamWeightDecay lacks bias correction, nn.Momentum's nesterov and nn.RMSProp differ from
# every publication, mint.optim does not update at all on CPU (docs/framework_traps.md).
OPTIMIZERS = ("adam", "sgd")


@dataclass
class OptimizerConfig:
    """Keys of the optimizer and of its schedule."""

    name: str = key("adam", "update rule", "optimizer", choices=OPTIMIZERS)
    lr: float = key(0.001, "initial learning rate", "lr", minimum=0)
    weight_decay: float = key(0.0, "L2 term added to the gradient", "wd", minimum=0)
    beta1: float = key(0.9, "Adam's decay of the mean", "beta1", minimum=0, below=1)
    beta2: float = key(0.999, "Adam's decay of the variance", "beta2", minimum=0, below=1)
    eps: float = key(1e-8, "Adam's epsilon")
    momentum: float = key(0.9, "momentum of sgd", "momentum", minimum=0, below=1)
    nesterov: bool = key(False, "Nesterov's form of momentum")
    clip_norm: float = key(0.0, "largest global norm of the gradient; 0 does not clip", minimum=0)
    schedule: str = key(
        "constant",
        "fall of the learning rate over the run",
        "lr_scheduler",
        choices=("constant", "linear", "poly", "cosine", "step"),
    )
    warmup_epochs: float = key(0.0, "epochs of linear warm-up", "warmup_epochs", minimum=0)
    warmup_start: float = key(0.0, "first share of the learning rate in warm-up", minimum=0)
    power: float = key(0.9, "exponent of poly")
    by_epoch: bool = key(False, "let the learning rate fall once per epoch instead of every step")
    epochs_ahead: int = key(
        0,
        "by_epoch: 1 is one epoch ahead, with the final rate all through the last epoch",
        "lr_offset",
        minimum=0,
        maximum=1,
    )
    final: float = key(0.0, "lowest share of the learning rate", minimum=0, maximum=1)
    milestones: list[float] = key([], "shares of the run at which step falls")
    gamma: float = key(0.1, "factor of step")


def build_optimizer(
    config: OptimizerConfig, groups: Sequence[dict[str, Any]], rates: np.ndarray
) -> Any:
    """A MindSpore optimizer that walks through ``rates``, one per step.

    Args:
        config: the optimizer's keys.
        groups: MindSpore parameter groups: dicts with "params" and optionally "weight_decay"
            and "lr_scale" (a factor of the learning rate).
        rates: learning rates of all steps, float32.

    Raises:
        UserError: settings that contradict each other.
    """
    from mindspore import nn

    if config.name == "sgd" and config.nesterov and config.momentum <= 0:
        raise UserError(
            f"optimizer.nesterov is a form of momentum, but optimizer.momentum={config.momentum}; "
            "set a momentum above 0 or optimizer.nesterov=false"
        )

    table = rates.tolist()
    prepared = []
    for group in groups:
        entry = {"params": group["params"]}
        entry["weight_decay"] = group.get("weight_decay", config.weight_decay)
        scale = group.get("lr_scale", 1.0)
        if scale != 1.0:
            entry["lr"] = (rates * np.float32(scale)).tolist()
        prepared.append(entry)
    # MindSpore stores a grouped optimizer's state under other names; one plain group stays plain.
    # Not with sgd, which then leaves gamma and beta without decay.
    single = len(prepared) == 1 and "lr" not in prepared[0] and config.name == "adam"
    parameters = prepared[0]["params"] if single else prepared
    decay = prepared[0]["weight_decay"] if single else config.weight_decay
    if config.name == "adam":
        return nn.Adam(
            parameters, table, config.beta1, config.beta2, config.eps, weight_decay=decay
        )
    return nn.SGD(
        parameters, table, momentum=config.momentum, weight_decay=decay, nesterov=config.nesterov
    )
