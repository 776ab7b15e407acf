"""How contenders are timed, with processes that only pretend to compute."""

import functools
import json
import time
from pathlib import Path

import numpy as np
import pytest

from model_utils import benchmarking
from model_utils.benchmarking import Job, Result, Worker
from model_utils.errors import UserError
from tests.commands import refusal, run_benchmark
from tests.toy.benchmark import BENCHMARK

SCRIPT = Path(__file__).parents[1] / "toy" / "benchmark.py"
command = functools.partial(run_benchmark, SCRIPT)


def test_tables_and_figures(tmp_path):
    output = tmp_path / "figures.json"
    done = command("--rounds=3", "--repeats=2", "--length=5", f"--output={output}")
    assert done.returncode == 0, done.stderr
    record = json.loads(output.read_text(encoding="utf-8"))
    assert record["length"] == 5
    sleeping = record["sleeping"]
    slow, fast = sleeping["slow"], sleeping["fast"]
    assert np.shape(slow["wall_ms"]) == np.shape(slow["cpu_ms"]) == (3, 2)
    # 40 ms and 10 ms of sleep, whatever else runs: at least that, and hardly any processor time.
    assert np.min(slow["wall_ms"]) >= 40
    assert np.min(fast["wall_ms"]) >= 10
    assert np.median(slow["cpu_ms"]) < 20
    assert fast["items_per_second"] == pytest.approx(5e3 / fast["median_ms"])
    rounds = [np.median(entry["wall_ms"], axis=1) for entry in (slow, fast)]
    ratios = rounds[0] / rounds[1]
    expected = [np.median(ratios), ratios.min(), ratios.max()]
    assert fast["speed_up_over_pytorch"] == pytest.approx(expected)
    assert slow["speed_up_over_pytorch"] == [1.0, 1.0, 1.0]
    # Outputs 1 and 1 + 5e-5: half of the tolerance apart.
    assert record["largest_difference"] == pytest.approx(5e-5, rel=0.01)
    # 1.01 is allowed its own tolerance, 0.02, and left out of the comparison of the others.
    assert sleeping["rough"]["difference"] == pytest.approx(0.01, rel=0.01)
    assert "  rough: 1.0e-02" in done.stdout
    # Left out: with a package, a compiler and a run that fails.
    assert record["skipped"] == {
        "absent": ["no_such_package"],
        "uncompiled": ["an abacus"],
    }
    assert "RuntimeError: it always fails" in record["failed"]["failing"]
    assert "skipped absent: not installed: no_such_package" in done.stdout
    assert "left out failing: contender failing ended" in done.stdout
    for name in ("absent", "uncompiled", "failing"):
        assert name not in sleeping


def test_contenders_take_turns_in_alternating_order(tmp_path):
    output, calls = tmp_path / "figures.json", tmp_path / "calls"
    done = command(
        "--rounds=4",
        "--repeats=1",
        "--contenders=slow,fast",
        f"--output={output}",
        f"--log={calls}",
    )
    assert done.returncode == 0, done.stderr
    said = calls.read_text(encoding="utf-8").split()
    # Three calls of warm-up each, then slow fast, fast slow, slow fast, fast slow.
    assert said[:6] == ["slow"] * 3 + ["fast"] * 3
    assert said[6:] == ["slow", "fast", "fast", "slow"] * 2


def test_processor_time_is_that_of_the_work():
    def busy():
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
        return 0.0

    timing = benchmarking.measure(busy, 3)
    assert len(timing["cpu_ms"]) == 3
    assert all(50 <= value < 100 for value in timing["cpu_ms"])
    assert all(w >= 0.99 * c for w, c in zip(timing["wall_ms"], timing["cpu_ms"], strict=True))


def test_ratios_are_formed_round_by_round():
    # The machine halves its speed after the first round: the ratio does not care.
    baseline = Result(0.0, wall_ms=[[30.0], [60.0], [60.0]])
    other = Result(0.0, wall_ms=[[10.0], [20.0], [24.0]])
    assert benchmarking.speed_ups(other, baseline) == pytest.approx((3.0, 2.5, 3.0))
    assert benchmarking.speed_ups(other, None) is None


def test_differing_outputs_are_refused(tmp_path):
    def differ(tolerance=1e-4):
        return benchmarking.largest_difference(["a", "b"], tmp_path, "descriptors", tolerance)

    good = np.ones((2, 3, 128), np.float32)
    np.save(tmp_path / "a.npy", good)
    np.save(tmp_path / "b.npy", good + np.float32(1e-6))
    assert differ() == pytest.approx(1e-6, rel=0.1)
    np.save(tmp_path / "b.npy", good + np.float32(1e-3))
    with pytest.raises(UserError, match="descriptors differ by 1.0e-03"):
        differ()
    assert differ(1e-2) == pytest.approx(1e-3, rel=0.01)
    np.save(tmp_path / "b.npy", good * np.nan)
    with pytest.raises(UserError, match="disagree"):
        differ()
    np.save(tmp_path / "b.npy", good[:, :1])
    with pytest.raises(UserError, match="differ by inf"):
        differ()
    # Relative to magnitudes above 1.
    np.save(tmp_path / "a.npy", 100 * good)
    np.save(tmp_path / "b.npy", 100 * good + np.float32(1e-3))
    assert differ() == pytest.approx(1e-5, rel=0.01)


def test_a_rough_contender_has_a_limit_too(tmp_path):
    section = BENCHMARK.sections[0]
    np.save(tmp_path / "slow.npy", np.ones(3))
    np.save(tmp_path / "rough.npy", np.full(3, 1.03))
    with pytest.raises(UserError, match=r"differ by 3.0e-02 \(slow, rough\)"):
        benchmarking.compare(BENCHMARK, section, ["slow", "rough"], tmp_path)


def test_a_dying_contender_is_named_with_its_last_words(tmp_path):
    worker = Worker(SCRIPT, "failing", Job(tmp_path, 1, {"length": 1, "log": ""}))
    try:
        with pytest.raises(UserError, match=r"failing ended with status 1: RuntimeError: it alw"):
            worker.answer()
    finally:
        worker.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--contenders=slow,swift"], "no contender swift; there are slow, fast, rough"),
        (["--threads=9999"], "--threads must be 0 to"),
        (["--rounds=0"], "0 is not a positive number"),
        (["--rounds=many"], "many is not a positive number"),
    ],
)
def test_impossible_options_are_one_sentence(arguments, message):
    done = command(*arguments)
    assert message in refusal(done)
