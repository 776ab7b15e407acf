"""SANet's scripts and a training of theirs that takes seconds."""

import functools

from tests.commands import run_script

run = functools.partial(run_script, "sanet")
# A training of seconds: small crops of the generated 256x128 images.
SMALL = (
    "--config_path=quickstart",
    "--epochs=1",
    "--batch_size=4",
    "--data.crop_height=64",
    "--data.crop_width=128",
    "--train.evaluate_every=1",
)
