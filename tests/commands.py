"""The networks' scripts run as a user runs them: by path, from a foreign folder."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_benchmark(script, *flags, timeout=900):
    """A ``benchmark.py`` run as a user runs it."""
    return subprocess.run(
        [sys.executable, str(script), *map(str, flags)],
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def refusal(done):
    """What a command that ended with status 2 said, without a traceback."""
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


def run_script(network, script, *flags, cwd, status=0):
    """Output of a script; of one that ends with status 2, its one sentence."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "research" / network / script), *map(str, flags)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cwd)},
    )
    text = done.stdout + done.stderr
    assert done.returncode == status, text
    if status == 2:
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and "Traceback" not in text, text
        return errors[0]
    return text
