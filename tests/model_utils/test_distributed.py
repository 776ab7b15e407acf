"""Two real processes with a real all-reduce against one process on the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mindspore import nn

from model_utils import checkpoint as checkpoints
from model_utils.distributed import (
    Ranks,
    agree,
    gather_parts,
    sum_over_ranks,
    synchronize_batch_norm,
)

ROOT = Path(__file__).resolve().parents[2]
# Plain gradient descent: Adam divides by the gradient's size and so magnifies rounding.
COMMON = ["--epochs=2", "--lr=0.005", "--optimizer.name=sgd", "--data.samples=40"]


def train(script, folder, ranks, *flags):
    flags = [*flags, f"--output_path={folder}"]
    if ranks == 1:
        command = [sys.executable, str(script), *flags]
    else:
        command = [
            *(sys.executable, "-m", "model_utils.launching", "--script", str(script)),
            *("--device_num", str(ranks), "--workdir", str(folder) + "_logs", "--", *flags),
        ]
        Path(str(folder) + "_logs").mkdir()
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "DEVICE_TARGET": "CPU", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return checkpoints.load(folder / "state.ckpt").arrays


def difference(a, b):
    """Largest difference of any weight or statistic, relative to the array's largest value."""
    assert a.keys() == b.keys()
    gaps = {
        name: float(np.abs(a[name] - b[name]).max() / max(np.abs(b[name]).max(), 1e-6))
        for name in a
        if a[name].dtype.kind == "f" and a[name].size
    }
    return max(gaps.values()), gaps


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    return train(ROOT / "tests/toy/train.py", folder, 1, *COMMON, "--batch_size=8"), folder


def test_two_half_batches_make_the_weights_of_the_whole_one(one_rank, tmp_path):
    """With synchronised batch statistics, dropout included."""
    two = train(ROOT / "tests/toy/train.py", tmp_path / "two", 2, *COMMON, "--batch_size=4")
    largest, gaps = difference(two, one_rank[0])
    assert largest < 2e-5, sorted(gaps.items(), key=lambda item: -item[1])[:4]
    # Metrics do not depend on the number of ranks either; only the first rank writes.
    rows = [(f / "metrics.csv").read_text().splitlines() for f in (tmp_path / "two", one_rank[1])]
    columns = rows[0][0].split(",")
    for mine, reference in zip(rows[0][1:], rows[1][1:], strict=True):
        for name, a, b in zip(columns, mine.split(","), reference.split(","), strict=True):
            if name != "seconds":
                assert float(a) == pytest.approx(float(b), rel=1e-4), name


def test_without_the_reducer_the_ranks_go_their_own_ways(one_rank, tmp_path):
    two = train(
        ROOT / "tests/toy/train_without_reducer.py",
        tmp_path / "two",
        2,
        *COMMON,
        "--batch_size=4",
    )
    largest, _ = difference(two, one_rank[0])
    assert largest > 1e-3


def test_without_synchronised_statistics_the_result_differs(one_rank, tmp_path):
    two = train(
        ROOT / "tests/toy/train.py",
        tmp_path / "two",
        2,
        *COMMON,
        "--batch_size=4",
        "--train.sync_batch_norm=false",
    )
    largest, _ = difference(two, one_rank[0])
    assert largest > 1e-3


def test_sdnet_on_two_ranks(tmp_path):
    """Negatives and similarity rankings over the global batch, statistics synchronised."""
    from research.sdnet.src.generator import generate
    from research.sdnet.src.preparing import PrepareOptions, list_pairs, prepare

    generate(tmp_path / "images", scenes=4, across=2, down=1)
    options = PrepareOptions(per_image=6, train_ratio=0.5, min_distance=16)
    prepare(list_pairs(tmp_path / "images"), tmp_path / "patches", options)
    flags = [
        f"--data_path={tmp_path / 'patches'}",
        "--epochs=1",
        "--optimizer.name=sgd",
        "--lr=0.01",
        "--test_batch_size=16",
    ]
    script = ROOT / "research/sdnet/train.py"
    one = train(script, tmp_path / "one", 1, *flags, "--batch_size=8")
    two = train(script, tmp_path / "two", 2, *flags, "--batch_size=4")
    # Momenta are gradients: an activation within rounding of ReLU's kink moves them by percents.
    weights = [{k: v for k, v in run.items() if k.startswith("model")} for run in (two, one)]
    largest, gaps = difference(*weights)
    assert largest < 1e-4, sorted(gaps.items(), key=lambda item: -item[1])[:4]


def test_sums_of_one_rank_are_the_values():
    values = np.array([1, 2**40, 0])
    np.testing.assert_array_equal(sum_over_ranks(values, Ranks()), values)
    np.testing.assert_array_equal(gather_parts(values, range(3), 3, Ranks()), values)
    assert agree(2**63 - 1, Ranks()) and agree(-5, Ranks())


SUM = """
import sys, numpy as np
from model_utils import distributed, runtime
from model_utils.distributed import agree, gather_parts, sum_over_ranks
ranks = runtime.start("CPU", 0, True).ranks
whole = np.array([2**44 + 3, 5, 2**24 + 1])
print(f"R{ranks.rank} int", (sum_over_ranks(whole, ranks) == 2 * whole).all())
exact = np.array([1 / 3, 1e-9, 12345.678901234])
print(f"R{ranks.rank} float", np.allclose(sum_over_ranks(exact, ranks), 2 * exact, rtol=1e-13))
part = range(0, 3) if ranks.rank == 0 else range(3, 7)
gathered = gather_parts(np.arange(part.start, part.stop) * 10, part, 7, ranks)
print(f"R{ranks.rank} gather", (gathered == np.arange(7) * 10).all())
same = [agree(value, ranks) for value in (0, 7, -1, 2**63 - 1)]
other = [agree(value * (1 + ranks.rank), ranks) for value in (1, -1, 2**20, 2**48, 2**62 - 1)]
print(f"R{ranks.rank} agree", same == [True] * 4 and other == [False] * 5)
cells = []
distributed._Sum = lambda: cells.append(1)  # a further Cell would be a further compilation
sum_over_ranks(whole, ranks)
print(f"R{ranks.rank} compiled once", cells == [])
"""


def test_host_sums_and_gathers_over_two_ranks(tmp_path):
    script = tmp_path / "sums.py"
    script.write_text(SUM)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "model_utils.launching", "--script", str(script)),
            *("--device_num", "2", "--workdir", str(tmp_path)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "DEVICE_TARGET": "CPU", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for rank in range(2):
        text = (tmp_path / f"train_parallel{rank}" / "log").read_text()
        for what in ("int", "float", "gather", "agree", "compiled once"):
            assert f"R{rank} {what} True" in text, what


class Named(nn.Cell):
    """Normalisation as an attribute, in a list, and one cell deeper."""

    def __init__(self, depth):
        super().__init__()
        self.bn = nn.BatchNorm2d(2)
        self.pair = nn.SequentialCell(nn.BatchNorm2d(2), nn.ReLU())
        self.inner = Named(depth - 1) if depth else None


def test_synchronised_layers_keep_their_parameters_and_names():
    network = Named(2)
    before = {p.name: p for p in network.get_parameters()}
    assert synchronize_batch_norm(network, Ranks(0, 2)) == 6
    after = {p.name: p for p in network.get_parameters()}
    assert before.keys() == after.keys() and len(before) == 24
    assert all(after[name] is before[name] for name in before)
    assert len(network.trainable_params()) == 12


def test_layers_with_stored_statistics_stay_so():
    """Synchronised, they would take those of the batch, which freezing them is meant to avoid."""
    network = nn.SequentialCell(nn.BatchNorm2d(2, use_batch_statistics=False), nn.BatchNorm2d(2))
    assert synchronize_batch_norm(network, Ranks(0, 2)) == 1
    assert isinstance(network[0], nn.BatchNorm2d) and not isinstance(network[1], nn.BatchNorm2d)
