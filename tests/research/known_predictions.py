"""Data and a scorer whose predictions are known, for the evaluation of segmentation networks.

The green channel of an image holds the class that the scorer predicts, its mask the truth.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from model_utils.segmentation import IGNORE

ROOT = Path(__file__).resolve().parents[2]
STEP = 60


def blocks(rng, size, classes):
    coarse = rng.integers(0, classes, (-(-size[0] // 6), -(-size[1] // 6)))
    return np.kron(coarse, np.ones((6, 6), int))[: size[0], : size[1]].astype(np.uint8)


def draw_maps(rng, size):
    """A truth, in which class 3 never occurs and some pixels are ignored, and a prediction."""
    truth = blocks(rng, size, 3)
    prediction = np.where(rng.random(size) < 0.2, blocks(rng, size, 4), truth)
    truth = np.where(rng.random(size) < 0.1, IGNORE, truth).astype(np.uint8)
    return truth, prediction.astype(np.uint8)


def paint(rng, prediction):
    """An image for which the scorer predicts this."""
    image = rng.integers(0, 256, (*prediction.shape, 3)).astype(np.uint8)
    image[:, :, 1] = STEP * prediction
    return image


def scorer(images):
    """Logits at full resolution, largest for the class that the green channel names."""
    green = (images[:, 1] * 0.224 + 0.456) * 255
    return -np.abs(green[:, None] - STEP * np.arange(4)[None, :, None, None]).astype(np.float32)


def expected_iou(truths, predictions):
    """Of the four classes, by scikit-learn."""
    truth, prediction = (
        np.concatenate([part.ravel() for part in parts]) for parts in (truths, predictions)
    )
    known = truth != IGNORE
    return jaccard_score(
        truth[known], prediction[known], labels=range(4), average=None, zero_division=0
    )


def check_figures(metrics, names, truths, predictions):
    """What every segmentation network's metrics say of these predictions."""
    iou = expected_iou(truths, predictions)
    assert list(metrics["iou"]) == list(names)
    np.testing.assert_allclose(list(metrics["iou"].values()), iou, rtol=1e-12)
    assert metrics["miou"] == pytest.approx(iou.mean())
    known = [truth != IGNORE for truth in truths]
    right = sum(((t == p) & k).sum() for t, p, k in zip(truths, predictions, known, strict=True))
    assert metrics["pixel_accuracy"] == pytest.approx(right / sum(k.sum() for k in known))
    assert "all 4 classes (1 without a labelled pixel)" in metrics["protocol"]


def run_on_two_ranks(script, folder, timeout=400):
    """A script of this folder by the launcher; its only argument is ``folder``."""
    (folder / "logs").mkdir()
    command = [
        *(sys.executable, "-m", "model_utils.launching"),
        *("--script", str(ROOT / "tests" / "research" / script)),
        *("--device_num", "2", "--workdir", str(folder / "logs"), "--", str(folder)),
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "DEVICE_TARGET": "CPU", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def start_rank():
    """In such a script: the framework's set-up, this process's ranks and the folder."""
    import mindspore

    from model_utils.distributed import initialize

    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    mindspore.set_device("CPU")
    return initialize(), Path(sys.argv[-1])  # behind the launcher's own flags
