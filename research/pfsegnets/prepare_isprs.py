"""Crop the aerial images of Vaihingen or Potsdam, colours of the masks to class numbers.

python prepare_isprs.py --data.format=potsdam --data_path=POTSDAM --output_path=PATCHES
python prepare_isprs.py --data.format=vaihingen --data_path=VAIHINGEN --output_path=PATCHES \
    --prepare.images=top --prepare.masks=gts_for_participants
"""

from model_utils.entry import command
from src.task import PFNetTask
from src.tools.cropping import prepare_isprs

if __name__ == "__main__":
    command(PFNetTask(), "prepare", prepare_isprs)
