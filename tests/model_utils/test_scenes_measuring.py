"""The measuring command, on scenes of seconds."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from model_utils.scenes import measuring
from model_utils.scenes.source import Patch
from tests.model_utils.scene_cases import picture, read

ROOT = Path(__file__).resolve().parents[2]


def test_the_stand_in_finds_the_nearest_colour():
    network, layers = measuring.stand_in()
    pixels = picture(60, 70)
    (image,) = network.prepare([Patch(pixels, np.ones((60, 70), bool), "x")])
    found = network.run(image[None])[0].argmax(axis=0)
    smooth = np.stack([cv2.blur(plane, (9, 9)) for plane in image], axis=2)
    distance = ((smooth[:, :, None] - measuring._COLOURS) ** 2).sum(axis=3)
    assert (found == distance.argmin(axis=2)).mean() > 0.999
    assert len(layers.names) == len(measuring._COLOURS) > len(np.unique(found)) > 1


def test_memory_and_restart(tmp_path):
    """Figures of real processes; the killed run ends like the undisturbed one."""
    folder, output = tmp_path / "data", tmp_path / "figures.json"
    script = [sys.executable, str(ROOT / "scripts" / "measure_scenes.py")]
    sizes = ["--small=1200", "--large=1800", f"--folder={folder}", f"--output={output}"]
    for what in ("memory", "restart"):
        done = subprocess.run([*script, what, *sizes], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        figures = json.loads(output.read_text())
        if what == "memory":
            peaks = [figures[f"{side}x{side}"]["peak_mb"] for side in (1200, 1800)]
            assert all(60 < peak < 1500 for peak in peaks)
            assert figures["growth"] == pytest.approx(peaks[1] / peaks[0] - 1, abs=1e-3)
            assert figures["1800x1800"]["tiles"] == 9 and figures["1800x1800"]["finished"]
            assert read(folder / "classes_1800.tif").shape == (1, 1800, 1800)
        else:
            assert figures["equal_to_undisturbed"] and figures["tiles"] == 4
            assert figures["computed_twice"] <= 4 and figures["kept_when_killed"] >= 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["network"], "--network is missing"),
        (["memory", "--infer.scene.tile=5"], "unknown: --infer.scene.tile=5"),
        (["network", "--network=sanet", "--tiles=3"], "3 is not ROWSxCOLUMNS"),
    ],
)
def test_command_lines_that_make_no_sense(arguments, message, capsys):
    with pytest.raises(SystemExit) as status:
        measuring.main(arguments)
    assert status.value.code == 2 and message in capsys.readouterr().err
