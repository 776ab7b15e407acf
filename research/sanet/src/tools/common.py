"""What the tools share: weights, or fresh ones where a tool only needs the layers."""

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from model_utils import runtime
from model_utils.distributed import Ranks
from model_utils.errors import UserError

from ..api import SANet
from ..config import SANetConfig
from ..network import SANetNetwork

log = logging.getLogger("zoo")
DEFAULT_WEIGHTS = "outputs/train/best.ckpt"


def open_model(config: SANetConfig, backend: str | None = None) -> SANet:
    """The trained network of a configuration, on its device.

    Args:
        config: names the checkpoint and the backend.
        backend: instead of the configuration's.

    Raises:
        UserError: see ``SANet.from_checkpoint``.
    """
    runtime.start(config.device_target, config.seed)
    source = config.checkpoint_path or DEFAULT_WEIGHTS
    if not config.checkpoint_path and not Path(source).is_file():
        raise UserError(f"no checkpoint given and none in {source}; add --checkpoint_path=FILE")
    return SANet.from_checkpoint(source, backend or config.infer.backend, config)


def trained_network(model: SANet, purpose: str) -> SANetNetwork:
    """The Cell of a model.

    Raises:
        UserError: the model is an exported file, which has no layers to look into.
    """
    if model.network is None:
        raise UserError(
            f"{model.source} is an exported file; {purpose} needs the network's layers: give a "
            ".ckpt as --checkpoint_path"
        )
    return model.network


def fresh_network(task: Any, config: SANetConfig, variant: str = "") -> SANetNetwork:
    """The configured network, or another variant of it, with random weights."""
    runtime.start(config.device_target, config.seed)
    chosen = replace(config, variant=variant or config.variant, task="segmentation")
    network: SANetNetwork = task.build_network(chosen, Ranks())
    network.set_train(False)
    return network


def network_or_fresh(task: Any, config: SANetConfig) -> tuple[SANetNetwork, str]:
    """The network with its checkpoint, or with random weights without one; and which it is."""
    if config.checkpoint_path:
        model = open_model(config, "mindspore")
        return trained_network(model, "this tool"), str(model.source)
    return fresh_network(task, config), f"random weights, seed {config.seed}"


def ascii_name(text: str) -> str:
    """A class name as part of a file name: letters, digits, underscores."""
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_") or "class"


def ascii_names(texts: Sequence[str]) -> list[str]:
    """:func:`ascii_name` of every class; those that come out alike get their numbers."""
    names = [ascii_name(text) for text in texts]
    return [
        name if names.count(name) == 1 else f"{name}_{number}" for number, name in enumerate(names)
    ]
