"""Measure an SDNet checkpoint: FPR95, accuracy, AUC.

python eval.py --data_path=DATA --checkpoint_path=FILE.ckpt
"""

from model_utils.entry import evaluate
from src.task import SDNetTask

if __name__ == "__main__":
    evaluate(SDNetTask())
