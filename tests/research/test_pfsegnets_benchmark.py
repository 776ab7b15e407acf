"""PFNet's benchmark command, run for real on small images."""

import functools
import importlib.util
import json

import numpy as np
import pytest

from research.pfsegnets.src import benchmarking
from tests.commands import refusal, run_benchmark

command = functools.partial(run_benchmark, benchmarking.SCRIPT)


def test_contenders_agree_and_figures_are_written(tmp_path):
    output = tmp_path / "figures.json"
    rows = ("eager", "onnxruntime", "direct", "mindir-folded")
    names = ",".join([*(f"resnet50-{row}" for row in rows), "train-eager", "train-ours"])
    done = command(
        *("--backbone=resnet50", "--height=64", "--width=96", "--train_size=64"),
        *("--rounds=1", "--repeats=2", "--threads=1", f"--contenders={names}"),
        f"--output={output}",
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(output.read_text(encoding="utf-8"))
    assert "inference_of_res2net101" not in record  # not asked for
    inference = record["inference_of_resnet50"]
    # Different orders round differently: exactly zero would compare a file with itself.
    assert 0 < record["largest_difference"] < benchmarking.BENCHMARK.tolerance
    assert {"resnet50-onnxruntime", "resnet50-direct", "resnet50-mindir-folded"} <= inference.keys()
    for entry in inference.values():
        assert np.shape(entry["wall_ms"]) == (1, 2)
    training = record["training_step_of_resnet50"]
    if importlib.util.find_spec("torch"):
        assert inference["resnet50-onnxruntime"]["speed_up_over_pytorch"] is not None
        # The same weights and batch: the first step's loss is the same.
        losses = [training[name]["first_value"] for name in ("train-eager", "train-ours")]
        assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    else:
        assert record["skipped"] == {"resnet50-eager": ["torch"], "train-eager": ["torch"]}


def test_bad_options_are_one_sentence():
    done = command("--backbone=resnet50,resnet18")
    assert "resnet50,resnet18 is not a list of resnet50, resnet101, res2net101" in refusal(done)
