"""The benchmark command, run for real on a small batch, and what it compares with."""

import functools
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor

from model_utils import benchmarking as machinery
from research.sdnet.src import benchmarking
from research.sdnet.src.losses import SDNetLoss, SDNetTrainCell
from research.sdnet.src.network import SDNetNetwork
from research.sdnet.src.upstream_step import UpstreamStep
from tests.commands import refusal, run_benchmark

command = functools.partial(run_benchmark, benchmarking.SCRIPT)


def test_published_step_takes_four_forwards_and_moves_all_weights():
    network = SDNetNetwork(seed=0)
    cell = SDNetTrainCell(network, SDNetLoss())
    cell.set_train(True)
    # By object: the framework renames parameters that enter several optimizers' cells.
    parameters = network.parameters_dict()
    trainable = {parameter.name for parameter in network.trainable_params()}
    before = {name: value.asnumpy().copy() for name, value in parameters.items()}
    draw = np.random.default_rng(0)
    opt, sar = (Tensor(draw.uniform(-1, 1, (3, 1, 64, 64)).astype(np.float32)) for _ in "ab")
    step = UpstreamStep(cell)
    assert np.isfinite(float(step(opt, sar)))
    after = {name: value.asnumpy() for name, value in parameters.items()}
    # Two calls per forward, one per modality.
    assert int(after["model.embedding.13.dropout_calls"][0]) == 8
    # One update of the running mean is 0.1 m; four are (1 - 0.9^4) m = 3.44 times that, less
    # what the first Adam changes before the last two forwards.
    reference = SDNetNetwork(seed=0)
    reference.set_train(True)
    reference(opt, sar)
    name = "model.features_opt.1.moving_mean"
    once = reference.parameters_dict()[name].asnumpy()
    assert np.abs(after[name]).sum() > 1.7 * np.abs(once).sum()
    for name in trainable:
        moved = np.abs(after[name] - before[name]).max()
        assert 0 < moved <= 0.005, name  # Adam's first step is about lr = 0.004


def test_contenders_agree_and_figures_are_written(tmp_path):
    output = tmp_path / "figures.json"
    names = "train-ours,infer-mindspore,infer-onnxruntime,infer-pytorch"
    done = command(
        "--batch_size=4", "--rounds=2", "--repeats=2", f"--contenders={names}", f"--output={output}"
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(output.read_text(encoding="utf-8"))
    assert record["batch_size"] == 4
    assert np.shape(record["training_step"]["train-ours"]["wall_ms"]) == (2, 2)
    inference = record["inference"]
    assert 0 < record["largest_difference"] < benchmarking.BENCHMARK.tolerance
    for name in ("infer-mindspore", "infer-onnxruntime"):
        times = np.array(inference[name]["wall_ms"])
        assert (times > 0).all()
        assert inference[name]["pairs_per_second"] == pytest.approx(4e3 / np.median(times))
    if importlib.util.find_spec("torch"):
        rounds = {name: np.median(inference[name]["wall_ms"], axis=1) for name in inference}
        ratios = rounds["infer-pytorch"] / rounds["infer-onnxruntime"]
        expected = [np.median(ratios), ratios.min(), ratios.max()]
        assert inference["infer-onnxruntime"]["speed_up_over_pytorch"] == pytest.approx(expected)
    else:
        assert record["skipped"] == {"infer-pytorch": ["torch"]}
        assert "skipped infer-pytorch: not installed: torch" in done.stdout
        assert inference["infer-onnxruntime"]["speed_up_over_pytorch"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--contenders=train-theirs"], "no contender train-theirs; there are train-ours"),
        (["--threads=9999"], "--threads must be 0 to"),
        (["--batch_size=0"], "0 is not a positive number"),
    ],
)
def test_impossible_options_are_one_sentence(arguments, message):
    done = command(*arguments)
    assert message in refusal(done)


def test_pytorch_does_not_inherit_the_cap_for_mindspore(tmp_path, monkeypatch):
    # The test process has capped itself; a user's shell has not.
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    seen = []

    class Spy(machinery.Worker):
        def __init__(self, script, name, job):
            super().__init__(script, name, job)
            environment = Path(f"/proc/{self.process.pid}/environ").read_bytes()
            seen.append((name, b"ONEDNN_MAX_CPU_ISA" in environment))

    monkeypatch.setattr(machinery, "Worker", Spy)
    names = "infer-onnxruntime,infer-mindspore"
    output = tmp_path / "figures.json"
    status = benchmarking.main(
        [
            "--batch_size=1",
            "--rounds=1",
            "--repeats=1",
            f"--contenders={names}",
            f"--output={output}",
        ]
    )
    assert status == 0
    assert seen == [("prepare", False), ("infer-onnxruntime", False), ("infer-mindspore", False)]
