"""Parameters and multiply-adds of SANet, module by module."""

import logging
import re
from pathlib import Path
from typing import Any

from model_utils.complexity import Complexity, count
from model_utils.errors import UserError
from model_utils.files import write_json

from ..config import SANetConfig
from ..network import VARIANTS, SANetNetwork
from ..prediction import Prediction
from .common import fresh_network

log = logging.getLogger("zoo")


def parse_size(text: str) -> tuple[int, int]:
    """Rows and columns of a text such as "1024x2048".

    Raises:
        UserError: it has another form.
    """
    match = re.fullmatch(r"\s*(\d+)\s*[xX*]\s*(\d+)\s*", text)
    if match is None or not (int(match[1]) and int(match[2])):
        raise UserError(f"size '{text}' is not ROWSxCOLUMNS, such as 1024x2048")
    return int(match[1]), int(match[2])


def sanet_complexity(network: SANetNetwork, height: int, width: int, heads: bool) -> Complexity:
    """Counts of one image.

    Args:
        network: any variant.
        height, width: of the image.
        heads: with the two heads that only training needs.
    """
    return count(network if heads else Prediction(network), (1, 3, height, width))


def complexity(task: Any, config: SANetConfig, output: Path) -> None:
    """complexity.py: tables of all variants."""
    keys = config.complexity
    sizes = [parse_size(text) for text in keys.sizes]
    if not sizes:
        raise UserError("complexity.sizes is empty; name a size, such as 1024x2048")
    summary: dict[str, Any] = {}
    for variant in VARIANTS:
        network = fresh_network(task, config, variant)
        figures: dict[str, Any] = {}
        for height, width in sizes:
            counted = sanet_complexity(network, height, width, heads=False)
            figures[f"{height}x{width}"] = counted.multiply_adds
        height, width = sizes[0]
        table = sanet_complexity(network, height, width, heads=True).modules(keys.depth)
        log.info("SANet-%s with the heads for training, %dx%d", variant, height, width)
        for line in table.lines():
            log.info(line)
        table.write(output / f"complexity_{variant}.csv")
        summary[variant] = {
            "parameters": counted.used,
            "parameters_with_heads": table.used,
            "multiply_adds": figures,
            "multiply_adds_with_heads": {f"{height}x{width}": table.multiply_adds},
        }
    write_json(output / "metrics.json", summary)
    log.info("%-8s %12s %s", "network", "parameters", " ".join(f"{t:>12}" for t in keys.sizes))
    for variant, row in summary.items():
        macs = " ".join(f"{n / 1e9:>10.2f} G" for n in row["multiply_adds"].values())
        log.info("SANet-%-2s %12s %s", variant, f"{row['parameters']:,}", macs)
    log.info("multiply-adds of the prediction build; tables in %s", output)
