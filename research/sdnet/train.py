"""Train SDNet.

python train.py --data_path=DATA
bash scripts/run_train.sh hccl_8p.json DATA      # eight Ascend cards
python train.py --enable_modelarts=True ...      # what a ModelArts job starts
"""

from model_utils.entry import train
from src.task import SDNetTask

if __name__ == "__main__":
    train(SDNetTask())
