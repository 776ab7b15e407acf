"""Device, threads, seeds: the state of a process, set once and said in one line."""

import logging
import os
import random
import sys
from dataclasses import dataclass
from importlib import metadata

import numpy as np

from model_utils.distributed import Ranks, initialize, requested
from model_utils.errors import UserError
from model_utils.local_adapter import get_device_id

log = logging.getLogger("zoo")
DEVICES = ("auto", "Ascend", "GPU", "CPU")
TESTED_MINDSPORE = "2.10"


@dataclass(frozen=True)
class Runtime:
    """What ``start`` decided: the device and this process's place among the ranks."""

    device: str
    ranks: Ranks


def cap_convolution_isa() -> str:
    """Keep oneDNN off its scalar fallback on AVX-512 processors (100 times slower).

    Must precede the first convolution of the process; a value the user has set is kept.
    Returns the value in force.
    """
    return os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")


def start(
    device_target: str = "auto", seed: int = 0, distributed: bool = False, device_id: int = -1
) -> Runtime:
    """Choose the device, join the other ranks, fix the seeds, select graph mode.

    Args:
        device_target: auto, Ascend, GPU or CPU. ``auto`` takes the best that really works.
        seed: of Python, NumPy and MindSpore.
        distributed: join the processes of the launcher that started this one.
        device_id: card of this process; -1 asks the launcher's environment, else 0.

    Raises:
        UserError: the device asked for by name is absent, no launcher started this rank, or the
            environment's DEVICE_ID or RANK_SIZE is no number.
    """
    isa = cap_convolution_isa()
    # Errors only; the framework's warnings are about its own deprecations. Users may override.
    if "GLOG_v" not in os.environ:
        os.environ["GLOG_v"] = "3"  # for what is loaded from now on
        logging.getLogger(f"ME.mindspore.log.{os.getpid()}").setLevel(logging.ERROR)
    import mindspore as ms

    _check_versions()
    device, why = choose_device(device_target)
    number = device_id if device_id >= 0 else get_device_id()
    if device == "CPU":
        ms.set_device("CPU")
    else:
        ms.set_device(device, number)
    ms.set_context(mode=ms.GRAPH_MODE)
    if distributed and not requested():
        raise UserError(
            "is_distributed is set but no launcher started this process; "
            "use scripts/run_train.sh RANK_TABLE DATA or msrun"
        )
    ranks = initialize() if distributed else Ranks()
    set_seeds(seed)
    if device == "GPU" and ranks.first:
        log.warning("MindSpore's CUDA 11 plugin loaded; nothing here was ever run on a GPU")
    threads = f", {os.cpu_count()} processors, ONEDNN_MAX_CPU_ISA={isa}" if device == "CPU" else ""
    if ranks.first:
        log.info("device %s (%s)%s, %d rank(s), seed %d", device, why, threads, ranks.size, seed)
    return Runtime(device, ranks)


def choose_device(device_target: str) -> tuple[str, str]:
    """Resolve auto to the best device that works; returns it and the reason.

    Raises:
        UserError: an unknown name, or a device that is not there.
    """
    names = {name.lower(): name for name in DEVICES}
    if device_target.lower() not in names:
        raise UserError(f"device_target={device_target} is not one of {', '.join(DEVICES)}")
    wanted = names[device_target.lower()]
    if wanted == "CPU":
        return "CPU", "asked for"
    if wanted != "auto":
        if not _available(wanted):
            raise UserError(
                f"device_target={wanted} was asked for, but this machine has no working {wanted} "
                f"for MindSpore {metadata.version('mindspore')}; use device_target=auto or CPU"
            )
        return wanted, "asked for"
    for name in ("Ascend", "GPU"):
        if _available(name):
            return name, "auto: best device found"
    return "CPU", "auto: neither Ascend nor GPU works here"


def _available(device: str) -> bool:
    """Whether MindSpore's plugin for a device loads and finds at least one card."""
    import mindspore as ms

    # is_available alone is true for a GPU plugin without a GPU. Both complain on stderr.
    with _Quiet():
        try:
            return bool(ms.hal.is_available(device)) and ms.hal.device_count(device) > 0
        except (ValueError, RuntimeError):
            return False


class _Quiet:
    """Silence the C++ side's stderr for a moment."""

    def __enter__(self) -> None:
        sys.stderr.flush()
        self._saved = os.dup(2)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)

    def __exit__(self, *exception: object) -> None:
        sys.stderr.flush()
        os.dup2(self._saved, 2)
        os.close(self._saved)


def set_seeds(seed: int) -> None:
    """Seed Python, NumPy and MindSpore."""
    import mindspore as ms

    random.seed(seed)
    np.random.seed(seed % 2**32)
    ms.set_seed(seed)


def _check_versions() -> None:
    if int(np.__version__.split(".")[0]) >= 2:
        raise UserError(
            f"NumPy {np.__version__} breaks MindSpore {TESTED_MINDSPORE}; pip install 'numpy<2'"
        )
    version = metadata.version("mindspore")
    if not version.startswith(TESTED_MINDSPORE + "."):
        log.warning("MindSpore %s: everything here was measured on %s", version, TESTED_MINDSPORE)
