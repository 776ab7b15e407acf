"""What a run says, when nobody listens any more and when its table was edited."""

import csv
import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from model_utils import checkpoint as checkpoints
from model_utils.errors import UserError
from model_utils.logs import Progress, Table, log, start_logging

ROOT = Path(__file__).resolve().parents[2]
TRAIN = f"{sys.executable} -m tests.toy.train --epochs=2 --batch_size=8"


@pytest.fixture
def own_log():
    """The "zoo" logger, given back as it was."""
    handlers, level, propagate = list(log.handlers), log.level, log.propagate
    yield log
    for handler in log.handlers:
        handler.close()
    log.handlers[:], log.propagate = handlers, propagate
    log.setLevel(level)


def shell(command, **environment):
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("pipe", ["| head -3", "2>&1 | head -1", ">&-", "> /dev/full"])
def test_a_training_outlives_the_reader_of_its_output(tmp_path, pipe):
    done = shell(f"{TRAIN} --output_path={tmp_path} {pipe}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
    assert checkpoints.load(tmp_path / "state.ckpt").info["step"] == 24
    text = (tmp_path / "train.log").read_text()
    assert "finished in" in text
    # With /dev/full that was before the file was open.
    assert ("nothing more is written to standard output" in text) == ("head" in pipe)


def test_a_bar_outlives_its_terminal(tmp_path, monkeypatch, own_log):
    leader, follower = pty.openpty()
    with open(follower, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        start_logging(file=tmp_path / "train.log")
        progress = Progress(1000, "training")
        progress.bar.mininterval = 0
        progress.advance()
        os.close(leader)
        for _ in range(3):
            progress.advance()
        log.info("still here")
        progress.close()
    text = (tmp_path / "train.log").read_text()
    assert "still here" in text and text.count("nothing more is written") == 1
    assert progress.done == 4


def test_a_log_file_that_cannot_be_is_a_sentence(tmp_path, own_log):
    with pytest.raises(UserError, match="cannot write .*: a folder has this name"):
        start_logging(file=tmp_path)
    assert logging.getLogger("zoo") is own_log


def table(folder, text):
    (folder / "metrics.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / "metrics.csv"


def test_a_resumed_table_forgets_later_steps(tmp_path):
    first = Table(tmp_path / "metrics.csv")
    first.add({"epoch": 1, "step": 12, "loss": 0.5})
    first.add({"epoch": 2, "step": 24, "loss": 0.25, "error": 0.1})
    again = Table(tmp_path / "metrics.csv", 12)
    again.add({"epoch": 2, "step": 24, "loss": 0.125, "error": 0.2})
    with open(tmp_path / "metrics.csv", newline="") as stream:
        assert list(csv.reader(stream)) == [
            ["epoch", "step", "loss", "error"],
            ["1", "12", "0.5", ""],
            ["2", "24", "0.125", "0.2"],
        ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch,step\n1,12\n2,3.0\n", "line 3: step='3.0' is not a whole number"),
        ("epoch,step\n1,\n", "line 2: step='' is not a whole number"),
        ("epoch,batch\n1,12\n", "line 1: the header names no column 'step'"),
        ("", "line 1: the header names no column 'step'"),
        ("epoch,step\n1\n", "line 2: the row has not as many values"),
        ("epoch,step\n1,12,13\n", "line 2: the row has not as many values"),
        ('epoch,step\n1,"12\n', "unexpected end of data"),
        (b"epoch,step\n\xff,12\n", "codec can't decode"),
    ],
)
def test_an_edited_table_is_a_sentence(tmp_path, text, words):
    path = table(tmp_path, text)
    with pytest.raises(UserError) as error:
        Table(path, 100)
    assert str(error.value).startswith(f"{path}, line ") and words in str(error.value)
    assert "move the file elsewhere" in str(error.value)
    Table(path).add({"step": 1})  # a run that starts anew does not read it
    assert path.read_text() == "step\n1\n"
