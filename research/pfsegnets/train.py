"""Train PFNet.

python train.py --data_path=ISAID_PATCHES --checkpoint_path=resnet50-deep.ckpt
python train.py --config_path=gaofen_img --data_path=GAOFEN
bash scripts/run_train.sh hccl_8p.json DATA      # eight Ascend cards
python train.py --enable_modelarts=True ...      # what a ModelArts job starts
"""

from model_utils.entry import train
from src.task import PFNetTask

if __name__ == "__main__":
    train(PFNetTask())
