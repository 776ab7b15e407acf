"""Train SANet, or pretrain its encoder on ImageNet folders.

python train.py --data_path=CITYSCAPES
python train.py --config_path=camvid_s --data_path=CAMVID --checkpoint_path=cityscapes.ckpt
python train.py --config_path=imagenet_s --data_path=IMAGENET
bash scripts/run_train.sh hccl_8p.json DATA      # eight Ascend cards
python train.py --enable_modelarts=True ...      # what a ModelArts job starts
"""

from model_utils.entry import train
from src.task import SANetTask

if __name__ == "__main__":
    train(SANetTask())
