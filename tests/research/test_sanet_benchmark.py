"""SANet's benchmark command, run for real on small images."""

import functools
import importlib.util
import json

import numpy as np
import pytest

from research.sanet.src import benchmarking
from tests.commands import refusal, run_benchmark

command = functools.partial(run_benchmark, benchmarking.SCRIPT)


def test_contenders_agree_and_figures_are_written(tmp_path):
    output = tmp_path / "figures.json"
    names = "S-eager,S-onnxruntime,S-mindir,S-mindir-folded,M-mindir,train-eager,train-ours"
    done = command(
        *("--variant=s", "--height=72", "--width=100", "--train_height=64", "--train_width=64"),
        *("--rounds=1", "--repeats=2", "--threads=1", f"--contenders={names}"),
        f"--output={output}",
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(output.read_text(encoding="utf-8"))
    assert record["variant"] == ["S"]
    assert "inference_of_M" not in record  # not asked for
    inference = record["inference_of_S"]
    # Folding changes the rounding: a difference of exactly zero would compare a file with itself.
    assert 0 < record["largest_difference"] < benchmarking.BENCHMARK.tolerance
    assert {"S-onnxruntime", "S-mindir", "S-mindir-folded"} <= inference.keys()
    for entry in inference.values():
        assert np.shape(entry["wall_ms"]) == (1, 2)
        assert entry["images_per_second"] == pytest.approx(1e3 / entry["median_ms"])
    training = record["training_step_of_S"]
    assert training["train-ours"]["images_per_second"] == pytest.approx(
        2e3 / training["train-ours"]["median_ms"]
    )
    if importlib.util.find_spec("torch"):
        assert inference["S-onnxruntime"]["speed_up_over_pytorch"] is not None
        # The same weights and batch: the first step's loss is the same.
        losses = [training[name]["first_value"] for name in ("train-eager", "train-ours")]
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    else:
        assert record["skipped"] == {"S-eager": ["torch"], "train-eager": ["torch"]}


def test_unknown_variants_are_one_sentence():
    done = command("--variant=S,XL")
    assert "S,XL is not a list of S, M, L" in refusal(done)
