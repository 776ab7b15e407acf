"""Measure a SANet checkpoint: mean IoU, accuracies, boundary F-score.

python eval.py --data_path=CITYSCAPES --checkpoint_path=FILE.ckpt
python eval.py --data_path=CITYSCAPES --scales=0.5,0.75,1,1.25 --flip=true
python eval.py --data_path=CITYSCAPES --split=test --submission=true
"""

from model_utils.entry import evaluate
from src.task import SANetTask

if __name__ == "__main__":
    evaluate(SANetTask())
