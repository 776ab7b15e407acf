"""Crop iSAID's images and masks into patches, colours of the masks to class numbers.

python prepare_isaid.py --data_path=ISAID --output_path=PATCHES
python prepare_isaid.py --data_path=ISAID --output_path=PATCHES --patch_height=800 \
    --patch_width=800 --overlap_area=200
python prepare_isaid.py --data_path=FOLDER --prepare.splits=. --output_path=PATCHES
"""

from model_utils.entry import command
from src.task import PFNetTask
from src.tools.cropping import prepare_isaid

if __name__ == "__main__":
    command(PFNetTask(), "prepare", prepare_isaid)
