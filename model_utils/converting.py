"""Weights trained elsewhere: read, rename, account for every tensor, write.

Nothing is executed: PyTorch files are read with ``weights_only=True``, NumPy files without
pickle, Jittor's by a reader that knows plain arrays only; TorchScript archives and pickled
modules are refused.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model_utils import checkpoint as checkpoints
from model_utils.distributed import Ranks
from model_utils.errors import UserError
from model_utils.files import atomic_path, require_file
from model_utils.jittor_files import read_jittor

log = logging.getLogger("zoo")
SOURCES = (".pth", ".pt", ".tar", ".ckpt", ".npz", ".safetensors", ".pkl")
# Counters that PyTorch keeps beside batch statistics; MindSpore has no such parameter.
IGNORED_SUFFIXES = ("num_batches_tracked",)
# What wrappers put before every name: DataParallel, torch.compile.
PREFIXES = ("module.", "_orig_mod.")
# Where training scripts put the weights inside what they save.
WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "network", "weights")


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a weights file by name.

    Raises:
        UserError: missing, unreadable, of an unknown kind, or PyTorch is not installed.
    """
    source = require_file(path, "weights file", "check --source")
    suffix = source.suffix.lower()
    if suffix not in SOURCES:
        raise UserError(f"{source} has none of the suffixes {', '.join(SOURCES)}")
    if suffix == ".npz":
        return _read_npz(source)
    if suffix == ".safetensors":
        return _read_safetensors(source)
    if suffix == ".ckpt" and not _is_torch(source):
        return checkpoints.load(source).arrays
    if suffix == ".pkl":
        return _read_jittor(source)
    return _read_torch(source)


def _is_torch(path: Path) -> bool:
    """Whether a .ckpt is PyTorch's (a zip, or a pickle of protocol 2 up) and not MindSpore's."""
    with open(path, "rb") as stream:
        head = stream.read(4)
    return head.startswith(b"PK") or head[:1] == b"\x80"


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    import zipfile

    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no readable .npz of plain arrays ({error})") from error


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is no readable safetensors file ({error})") from error


def _unwrapped(loaded: Any) -> Any:
    """The weights inside what a training script saved."""
    while isinstance(loaded, Mapping):
        inner = next((loaded[k] for k in WRAPPERS if isinstance(loaded.get(k), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    return loaded


def _read_jittor(path: Path) -> dict[str, np.ndarray]:
    loaded = _unwrapped(read_jittor(path))
    return {str(n): v for n, v in loaded.items() if isinstance(v, np.ndarray) and v.dtype != object}


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"reading {path} needs PyTorch: pip install 'torch>=2.4', or save the weights as .npz"
        ) from error
    import pickle

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} cannot be read as plain weights ({str(error).splitlines()[0]}); files that "
            "need their own code to load are refused: save model.state_dict() instead"
        ) from error
    loaded = _unwrapped(loaded)
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path} holds a {type(loaded).__name__}, not weights by name")
    return {
        str(name): value.detach().float().numpy()
        if value.is_floating_point()
        else value.detach().numpy()
        for name, value in loaded.items()
        if isinstance(value, torch.Tensor)
    }


def convert(task: Any, config: Any) -> Path:
    """convert.py: reference names to ours, or back with ``convert.reverse``.

    Every tensor of the source that no parameter takes, and every parameter that no tensor
    fills, is printed; either is an error unless allowed.

    Returns:
        The file written: .ckpt, or .npz / .safetensors / .pth with the reference's names.

    Raises:
        UserError: see above, or a shape differs, or a file cannot be read or written.
    """
    keys = config.convert
    if not keys.source:
        raise UserError("convert.py needs --source=FILE (and --output=FILE)")
    network = task.build_network(config, Ranks())
    ours = checkpoints.weights_of(network)
    names = {k: v for k, v in task.reference_names(network, config).items() if k in ours}
    if keys.reverse:
        output = Path(keys.output or Path(keys.source).with_suffix(".npz"))
        if not keys.output and output.exists():
            raise UserError(f"{output} exists; name another file with --output")
        checkpoints.load_weights(network, keys.source, name=task.name, rename=task.rename_parameter)
        arrays = checkpoints.weights_of(network)
        _write_reference(output, {names[k]: v for k, v in arrays.items()})
        log.info("%d parameters under the reference's names in %s", len(arrays), output)
        return output
    source = read_arrays(keys.source)
    output = Path(keys.output or Path(keys.source).with_suffix(".ckpt"))
    if output.suffix != ".ckpt":
        raise UserError(f"--output={output} must end in .ckpt")
    if output.resolve() == Path(keys.source).resolve():
        raise UserError(f"--output={output} would replace the source; choose another name")
    filled, unused = match(source, ours, names, task.rename_parameter, task.reference_prefixes)
    dead = [name for name in unused if _never_used(name, task)]
    unused = [name for name in unused if name not in dead]
    if dead:
        log.info(
            "%d tensors such as '%s' are left out: the reference stores but never uses them",
            len(dead),
            dead[0],
        )
    missing = [name for name in ours if name not in filled]
    for name in unused:
        log.warning("unused: %s %s", name, tuple(source[name].shape))
    for name in missing:
        log.warning("not filled: %s %s (%s)", name, tuple(ours[name].shape), names.get(name, "-"))
    if unused and not keys.allow_unused:
        raise UserError(
            f"{keys.source}: {len(unused)} tensor(s) fit no parameter, first '{unused[0]}'; "
            "check the configuration, or add --allow_unused"
        )
    if missing and not keys.allow_missing:
        raise UserError(
            f"{keys.source} fills {len(filled)} of {len(ours)} parameters, '{missing[0]}' is "
            "missing; check the configuration, or add --allow_missing"
        )
    info = {"from": keys.source, "settings": task.settings(config)}
    checkpoints.save(output, {**ours, **filled}, network=task.name, info=info)
    log.info("%d of %d parameters from %s in %s", len(filled), len(ours), keys.source, output)
    return output


def _bare(name: str, prefixes: Sequence[str]) -> str:
    for prefix in (*PREFIXES, *prefixes):
        name = name.removeprefix(prefix)
    return name


def _never_used(name: str, task: Any) -> bool:
    pattern = task.reference_unused
    return bool(pattern) and bool(re.fullmatch(pattern, _bare(name, task.reference_prefixes)))


def match(
    source: Mapping[str, np.ndarray],
    ours: Mapping[str, np.ndarray],
    names: Mapping[str, str],
    rename: Any,
    prefixes: Sequence[str] = (),
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Assign source tensors to parameters by the reference's names, or by our own.

    Args:
        source: tensors of the file; a common prefix such as ``module.`` is dropped.
        ours: parameters by our name.
        names: our name to the reference's.
        rename: maps names of other MindSpore implementations to ours.
        prefixes: further ones of the reference's wrappers.

    Returns:
        Arrays by our name, and the source names that no parameter took.

    Raises:
        UserError: a tensor has another shape than its parameter.
    """
    wanted = {reference: own for own, reference in names.items()}
    filled: dict[str, np.ndarray] = {}
    unused = []
    for name, value in source.items():
        bare = _bare(name, prefixes)
        if bare.endswith(IGNORED_SUFFIXES):
            continue
        own = wanted.get(bare) or rename(bare)
        if own not in ours or own in filled:
            unused.append(name)
            continue
        if tuple(value.shape) != tuple(ours[own].shape):
            raise UserError(
                f"'{name}' has shape {tuple(value.shape)}, the parameter {own} "
                f"{tuple(ours[own].shape)}; check the configuration"
            )
        filled[own] = np.ascontiguousarray(value, dtype=ours[own].dtype)
    return filled, unused


def _write_reference(path: Path, arrays: dict[str, np.ndarray]) -> None:
    if path.suffix == ".npz":
        with atomic_path(path) as temporary:
            np.savez(temporary, **arrays)
    elif path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        with atomic_path(path) as temporary:
            save_file(arrays, temporary)
    elif path.suffix in (".pth", ".pt"):
        try:
            import torch
        except ImportError as error:
            raise UserError(
                f"writing {path} needs PyTorch: pip install 'torch>=2.4', or choose .npz"
            ) from error
        with atomic_path(path) as temporary:
            torch.save({k: torch.from_numpy(v.copy()) for k, v in arrays.items()}, temporary)
    else:
        raise UserError(f"--output={path} must end in .npz, .safetensors, .pth or .pt")
