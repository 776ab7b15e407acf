import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from model_utils import checkpoint as checkpoints
from model_utils.data import EpochSampler, EvaluationSampler, Loader, read_batch
from model_utils.distributed import Ranks
from model_utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


class Numbers:
    """Sample i holds i and one random number."""

    def __init__(self, length, slow=0.0, broken=-1):
        self.length, self.slow, self.broken = length, slow, broken
        self.threads = set()

    def __len__(self):
        return self.length

    def sample(self, index, rng):
        if index == self.broken:
            raise UserError(f"image {index}.png is corrupt")
        self.threads.add(threading.get_ident())
        time.sleep(self.slow * (index % 3))
        return np.array([index]), rng.random(2)

    def name(self, index):
        return f"{index}.png"


def global_batch(length, batch, ranks, step, **more):
    samplers = [EpochSampler(length, batch, Ranks(r, ranks), **more) for r in range(ranks)]
    return [pair for sampler in samplers for pair in sampler.batch(step)]


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 60),
    batch=st.integers(1, 9),
    ranks=st.integers(1, 4),
    epochs=st.integers(1, 4),
    seed=st.integers(0, 3),
    shuffle=st.booleans(),
)
def test_every_pass_visits_every_sample_once(length, batch, ranks, epochs, seed, shuffle):
    seen = {}
    sampler = EpochSampler(length, batch, Ranks(0, ranks))
    for step in range(sampler.steps(epochs)):
        pairs = global_batch(length, batch, ranks, step, seed=seed, shuffle=shuffle)
        assert len(pairs) == batch * ranks
        for epoch, index in pairs:
            seen.setdefault(epoch, []).append(index)
    for epoch in range(epochs):
        assert sorted(seen[epoch]) == list(range(length))


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 80),
    batch=st.integers(1, 9),
    ranks=st.integers(1, 4),
    seed=st.integers(0, 5),
)
def test_no_batch_holds_a_sample_twice(length, batch, ranks, seed):
    assume(length >= 3 * batch * ranks)
    for step in range(EpochSampler(length, batch, Ranks(0, ranks)).steps(5)):
        indices = [i for _, i in global_batch(length, batch, ranks, step, seed=seed)]
        assert len(set(indices)) == len(indices)


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 50), half=st.integers(1, 6), step=st.integers(0, 60))
def test_two_ranks_draw_what_one_draws(length, half, step):
    assert global_batch(length, half, 2, step) == global_batch(length, 2 * half, 1, step)


def test_orders_differ_by_epoch_and_seed_and_do_not_depend_on_what_was_asked_before():
    one = EpochSampler(50, 10, Ranks(), seed=1)
    passes = [[i for s in range(5) for _, i in one.batch(5 * e + s)] for e in range(3)]
    assert passes[0] != passes[1] != passes[2] and passes[0] != list(range(50))
    fresh = EpochSampler(50, 10, Ranks(), seed=1)
    assert fresh.batch(14) == one.batch(14)
    assert EpochSampler(50, 10, Ranks(), seed=2).batch(0) != one.batch(0)


def test_a_data_set_may_decide_what_a_pass_shows():
    def order(seed, epoch):
        # 20 samples: ten of them twice, under two numbers.
        chosen = np.random.default_rng((seed, epoch, 1)).permutation(20)[:10]
        return np.concatenate([chosen, chosen + 20])

    for step in range(EpochSampler(20, 3, Ranks(0, 2)).steps(4)):
        assert global_batch(20, 3, 2, step, seed=4, order=order) == global_batch(
            20, 6, 1, step, seed=4, order=order
        )
    sampler = EpochSampler(20, 3, Ranks(), seed=4, order=order)
    seen = [pair for step in range(sampler.steps(6)) for pair in sampler.batch(step)]
    for epoch in range(6):
        indices = [index for e, index in seen if e == epoch]
        assert sorted(indices) == sorted(order(4, epoch).tolist())
    # A stored order stays one.
    assert EpochSampler(20, 3, Ranks(), shuffle=False, order=order).batch(0)[2] == (0, 2)


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 70), batch=st.integers(1, 9), ranks=st.integers(1, 5))
def test_evaluation_covers_every_sample_once_over_all_ranks(length, batch, ranks):
    indices = []
    for rank in range(ranks):
        sampler = EvaluationSampler(length, batch, Ranks(rank, ranks))
        for step in range(len(sampler)):
            indices += [i for _, i in sampler.batch(step)]
    assert indices == list(range(length))


@pytest.mark.parametrize(("workers", "kind"), [(0, "thread"), (2, "thread"), (2, "process")])
def test_batches_do_not_depend_on_the_readers_nor_on_where_one_starts(workers, kind):
    data = Numbers(23, slow=0.002)
    sampler = EpochSampler(23, 4, Ranks(), seed=3)
    expected = [read_batch(data, 7, sampler.batch(step)) for step in range(2, 12)]
    loader = Loader(data, sampler, seed=7, workers=workers, kind=kind)
    for _ in range(2):
        batches = list(loader.batches(2, 12))
        assert len(batches) == len(expected)
        for got, wanted in zip(batches, expected, strict=True):
            for a, b in zip(got, wanted, strict=True):
                np.testing.assert_array_equal(a, b)


def test_random_numbers_differ_between_epochs_and_samples():
    data = Numbers(4)
    sampler = EpochSampler(4, 4, Ranks(), shuffle=False)
    draws = [tuple(row) for step in range(3) for row in read_batch(data, 0, sampler.batch(step))[1]]
    assert len(set(draws)) == 12


@pytest.mark.parametrize(("workers", "kind"), [(0, "thread"), (2, "thread"), (2, "process")])
def test_a_bad_sample_is_its_own_sentence(workers, kind):
    sampler = EpochSampler(12, 4, Ranks(), shuffle=False)
    loader = Loader(Numbers(12, broken=6), sampler, workers=workers, kind=kind)
    batches = loader.batches(0, 3)
    next(batches)
    with pytest.raises(UserError, match=r"^image 6\.png is corrupt$"):
        next(batches)
    assert loader.names(1) == ["4.png", "5.png", "6.png", "7.png"]


def test_readers_run_ahead_in_threads():
    data = Numbers(64, slow=0.01)
    loader = Loader(data, EpochSampler(64, 8, Ranks()), workers=2)
    list(loader.batches(0, 8))
    assert len(data.threads) == 2 and threading.get_ident() not in data.threads


def test_an_empty_data_set_is_a_sentence():
    with pytest.raises(UserError, match="empty"):
        EpochSampler(0, 4, Ranks())


class Deadly(Numbers):
    """Its fourth sample takes the process that reads it along."""

    def sample(self, index, rng):
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().sample(index, rng)


def test_a_dead_reader_is_a_sentence_and_takes_the_others_along():
    loader = Loader(Deadly(64), EvaluationSampler(64, 1, Ranks()), workers=2, kind="process")
    before = set(multiprocessing.active_children())
    with pytest.raises(UserError, match=r"has died.*data\.worker_kind=thread"):
        list(loader.batches(0, 64))
    wait_until(lambda: set(multiprocessing.active_children()) <= before)


def test_a_data_set_that_cannot_travel_is_a_sentence():
    data = Numbers(8)
    data.lock = threading.Lock()
    loader = Loader(data, EvaluationSampler(8, 2, Ranks()), workers=2, kind="process")
    with pytest.raises(UserError, match=r"data set Numbers cannot .*lock.*worker_kind=thread"):
        list(loader.batches(0, 4))


def wait_until(holds, seconds=20):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def living(group):
    """The processes of a group that are no zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(pgrp) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


def train(folder):
    """A training in a process group of its own, with two reading processes."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.toy.train", "--epochs=100", "--data.pause=0.02"]
        + ["--data.worker_kind=process", "--data.workers=2", f"--output_path={folder}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_lets_the_training_save(tmp_path, number):
    """What Ctrl-C on a terminal and job schedulers do."""
    with train(tmp_path) as process:
        for line in process.stdout:
            if line.startswith("compiled"):
                break
        assert len(living(process.pid)) > 2
        os.killpg(process.pid, number)
        rest = process.stdout.read()
    assert process.returncode in (128 + number, 143), rest
    step = int(re.search(r"stopped by \w+ at step (\d+) of 1200; the state is saved", rest)[1])
    assert checkpoints.load(tmp_path / "state.ckpt").info["step"] == step
    assert "Traceback" not in rest and "died" not in rest
    wait_until(lambda: not living(process.pid))


def test_readers_end_when_the_training_is_killed(tmp_path):
    with train(tmp_path) as process:
        for line in process.stdout:
            if line.startswith("compiled"):
                break
        assert len(living(process.pid)) > 2
        process.kill()
        wait_until(lambda: not living(process.pid))


EARLY = """
import os, signal, threading
from model_utils.data import EvaluationSampler, Loader
from model_utils.distributed import Ranks
from tests.model_utils.test_data import Numbers

if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: print("heard"))
    signal.signal(signal.SIGTERM, lambda *_: print("heard"))
    for seconds in (0.1, 0.3, 0.6):  # while the readers import what they need
        threading.Timer(seconds, os.killpg, (0, signal.SIGINT)).start()
        threading.Timer(seconds + 0.1, os.killpg, (0, signal.SIGTERM)).start()
    loader = Loader(Numbers(20, slow=0.05), EvaluationSampler(20, 2, Ranks()), 0, 2, "process")
    print("read", [int(i) for batch in loader.batches(0, 10) for i in batch[0][:, 0]])
"""


def test_readers_outlive_a_signal_that_comes_while_they_start(tmp_path):
    script = tmp_path / "early.py"
    script.write_text(EARLY)
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("heard") >= 2
    assert f"read {list(range(20))}" in done.stdout
