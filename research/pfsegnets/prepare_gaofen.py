"""Check a Gaofen track's images and masks and divide them into train and val.

python prepare_gaofen.py --data.format=gaofen_img --data_path=SEA_ICE --output_path=gaofen/img
python prepare_gaofen.py --data.format=gaofen_sar --data_path=FISH_FARMS --output_path=gaofen/sar \
    --prepare.val_share=0.2 --prepare.link=true
"""

from model_utils.entry import command
from src.task import PFNetTask
from src.tools.dividing import prepare_gaofen

if __name__ == "__main__":
    command(PFNetTask(), "prepare", prepare_gaofen)
