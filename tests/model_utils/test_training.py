"""The training engine on a toy network, in processes of its own as users run it."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from model_utils import checkpoint as checkpoints

ROOT = Path(__file__).resolve().parents[2]
BASE = ["--epochs=3", "--batch_size=8", "--lr=0.01", "--optimizer.schedule=poly"]
EVERYTHING = [
    *BASE,
    "--train.ema_decay=0.9",
    "--train.accumulate=2",
    "--optimizer.clip_norm=1.0",
    "--optimizer.warmup_epochs=0.5",
]


def command(folder, *flags):
    return [sys.executable, "-m", "tests.toy.train", f"--output_path={folder}", *flags]


def run(folder, *flags, status=0, **environment):
    done = subprocess.run(
        command(folder, *flags),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def state(folder):
    return checkpoints.load(folder / "state.ckpt")


def assert_same_end(one, other):
    a, b = state(one), state(other)
    assert a.info["step"] == b.info["step"]
    assert a.arrays.keys() == b.arrays.keys()
    for name in a.arrays:
        np.testing.assert_array_equal(a.arrays[name], b.arrays[name], err_msg=name)


def rows(folder):
    with open(folder / "metrics.csv", newline="") as stream:
        return [{k: v for k, v in r.items() if k != "seconds"} for r in csv.DictReader(stream)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    run(folder, *EVERYTHING)
    return folder


def test_it_learns_and_leaves_what_it_should(undisturbed):
    table = rows(undisturbed)
    assert [row["epoch"] for row in table] == ["1", "2", "3"]
    assert float(table[-1]["loss"]) < 0.7 * float(table[0]["loss"])
    names = set(os.listdir(undisturbed))
    assert {"best.ckpt", "config.yaml", "curves.png", "metrics.json", "train.log"} <= names
    assert {f"checkpoint_Toy_{k}.ckpt" for k in (1, 2, 3)} <= names
    text = (undisturbed / "train.log").read_text()
    assert "compiling" in text and "epoch:1 step:6, loss is " in text


def test_two_runs_are_bit_equal(undisturbed, tmp_path):
    run(tmp_path, *EVERYTHING)
    assert_same_end(undisturbed, tmp_path)


def test_the_saved_configuration_runs_again(undisturbed, tmp_path):
    run(tmp_path, "--config_path", str(undisturbed / "config.yaml"))
    assert_same_end(undisturbed, tmp_path)


@pytest.mark.parametrize("when", [0.05, 0.5, 0.9])
def test_a_run_killed_anywhere_ends_as_the_undisturbed_one(undisturbed, tmp_path, when):
    """kill -9 after a share of the run; the state is written every other step."""
    flags = [*EVERYTHING, "--train.save_steps=2", "--data.pause=0.01"]
    process = subprocess.Popen(
        command(tmp_path, *flags), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wanted = max(2, int(18 * when))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if (tmp_path / "state.ckpt").exists() and state(tmp_path).info["step"] >= wanted:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    text = run(tmp_path, *flags, "--resume")
    resumed = int(re.search(r"resumed at step (\d+) of 18", text)[1])
    assert wanted <= resumed < 18
    assert_same_end(undisturbed, tmp_path)
    assert rows(tmp_path) == rows(undisturbed)


def test_a_run_killed_in_its_evaluation_repeats_only_that(undisturbed, tmp_path):
    process = subprocess.Popen(
        command(tmp_path, *EVERYTHING),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TOY_EVALUATION_PAUSE": "60"},
    )
    for line in process.stdout:
        if line == "evaluating\n":
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert "resumed at step 6 of 18" in run(tmp_path, *EVERYTHING, "--resume")
    assert_same_end(undisturbed, tmp_path)
    assert rows(tmp_path) == rows(undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_stop_saves_at_once(undisturbed, tmp_path, number):
    process = subprocess.Popen(
        command(tmp_path, *EVERYTHING, "--data.pause=0.02"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("compiled"):
            break
    time.sleep(0.5)
    process.send_signal(number)
    rest = process.stdout.read()
    process.stdout.close()
    # MindSpore turns SIGINT into SIGTERM while a graph runs.
    assert process.wait(timeout=30) in (128 + number, 143)
    step = int(re.search(r"stopped by \w+ at step (\d+) of 18; the state is saved", rest)[1])
    assert "Traceback" not in rest and state(tmp_path).info["step"] == step
    run(tmp_path, *EVERYTHING, "--resume")
    assert_same_end(undisturbed, tmp_path)


def test_a_run_in_stages_equals_one_in_a_piece(undisturbed, tmp_path):
    run(tmp_path, *EVERYTHING, "--train.stop_after_steps=7")
    assert state(tmp_path).info["step"] == 7
    run(tmp_path, *EVERYTHING, "--train.stop_after_steps=14", "--resume")
    run(tmp_path, *EVERYTHING, "--resume")
    assert_same_end(undisturbed, tmp_path)
    assert "is complete" in run(tmp_path, *EVERYTHING, "--resume")


def test_earlier_results_are_not_overwritten_by_accident(undisturbed):
    before = (undisturbed / "config.yaml").read_text()
    text = run(undisturbed, *EVERYTHING, status=2)
    assert "already holds a run; add --resume" in text
    text = run(undisturbed, *BASE, "--batch_size=4", "--resume", status=2)
    assert "global_batch 16 -> 4" in text and "Traceback" not in text
    assert (undisturbed / "config.yaml").read_text() == before


def test_two_runs_into_one_folder(tmp_path):
    flags = [*BASE, "--data.pause=0.2"]
    first = subprocess.Popen(command(tmp_path, *flags), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for line in first.stdout:
        if "results in" in line:
            break
    text = run(tmp_path, *flags, status=2)
    assert f"is being written by process {first.pid}" in text
    first.kill()
    first.stdout.close()
    first.wait()


def test_a_nan_pixel_is_named_and_loses_nothing(tmp_path):
    flags = [*BASE, "--train.save_steps=1", "--data.poison=17"]
    text = run(tmp_path, *flags, status=2)
    assert "wave_017.png holds NaN or infinite values" in text and "Traceback" not in text
    for name, value in state(tmp_path).arrays.items():
        assert np.isfinite(value).all(), name


def test_a_diverging_loss_names_the_batch_and_loses_nothing(tmp_path):
    flags = [*BASE, "--lr=1e12", "--optimizer.name=sgd", "--train.save_steps=1"]
    text = run(tmp_path, *flags, status=2)
    found = re.search(r"the loss is (inf|nan) at step (\d+) of 36; the batch held (.*?);", text)
    assert len(re.findall(r"wave_\d{3}\.png", found[3])) == 8 and "Traceback" not in text
    for name, value in state(tmp_path).arrays.items():
        assert np.isfinite(value).all(), name


def test_a_full_disk_stops_with_a_sentence_and_the_last_state_stays(small_disk):
    filler = small_disk / "filler"
    run(small_disk, *BASE, "--train.stop_after_steps=3")
    filler.write_bytes(b"x" * ((1 << 20) - 200_000))
    with pytest.raises(OSError), open(small_disk / "rest", "wb", buffering=0) as stream:
        while True:
            stream.write(b"x" * 4096)
    text = run(small_disk, *BASE, "--resume", status=2)
    assert "no space left while writing" in text and "Traceback" not in text
    assert state(small_disk).info["step"] >= 3


def test_averaged_weights_are_what_best_holds(undisturbed):
    end, best = state(undisturbed).arrays, checkpoints.load(undisturbed / "best.ckpt").arrays
    last = checkpoints.load(undisturbed / "checkpoint_Toy_3.ckpt").arrays
    np.testing.assert_array_equal(last["dense.weight"], end["ema.dense.weight"])
    assert not np.array_equal(end["dense.weight"], end["ema.dense.weight"])
    assert best.keys() == last.keys()


def test_a_replaced_run_is_gone_before_the_new_one_has_a_state(tmp_path):
    run(tmp_path, *BASE)
    run(tmp_path, *BASE, "--overwrite", "--data.poison=3", status=2)
    assert not (tmp_path / "state.ckpt").exists() and not (tmp_path / "best.ckpt").exists()
    assert not list(tmp_path.glob("checkpoint_*"))
    text = run(tmp_path, *BASE, "--resume")
    assert "nothing to resume" in text and "is complete" not in text
    error = run(tmp_path, *BASE, "--resume", "--overwrite", status=2)
    assert "--resume and --overwrite exclude each other" in error


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    """Also where several passes end at one step, so that their numbers have gaps."""
    run(tmp_path, "--data.samples=4", "--batch_size=16", "--epochs=20", "--train.keep_last=2")
    kept = sorted(path.name for path in tmp_path.glob("checkpoint_*"))
    assert len(kept) == 2 and kept[-1] == "checkpoint_Toy_20.ckpt"


def test_training_without_a_validation_split_says_so(tmp_path):
    text = run(tmp_path, *BASE, "--data.validation=0")
    assert "nothing will be evaluated" in text
    assert not (tmp_path / "best.ckpt").exists()


def test_event_files_where_tensorboardx_is_installed(tmp_path):
    pytest.importorskip("tensorboardX")
    run(tmp_path, *BASE)
    (events,) = (tmp_path / "events").iterdir()
    content = events.read_bytes()
    assert all(tag in content for tag in (b"train/loss", b"train/error", b"lr", b"eval/error"))
