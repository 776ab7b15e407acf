"""SANet's scripts run as a user runs them: by path, from a foreign folder."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NET = ROOT / "research" / "sanet"
# A training of seconds: small crops of the generated 256x128 images.
SMALL = (
    "--config_path=quickstart",
    "--epochs=1",
    "--batch_size=4",
    "--data.crop_height=64",
    "--data.crop_width=128",
    "--train.evaluate_every=1",
)


def run(script, *flags, cwd, status=0):
    done = subprocess.run(
        [sys.executable, str(NET / script), *map(str, flags)],
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
