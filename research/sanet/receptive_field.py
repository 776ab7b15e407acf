"""Compute the receptive field of every layer, and measure the effective one of a network.

python receptive_field.py --output_path=FIELDS
python receptive_field.py --checkpoint_path=FILE.ckpt --images=FOLDER --layers=layer3,dp2,decoder
"""

from model_utils.entry import command
from src.task import SANetTask
from src.tools.receptive_field import receptive_field

if __name__ == "__main__":
    command(SANetTask(), "receptive_field", receptive_field)
