"""Measure a PFNet checkpoint: mean IoU patch by patch and in whole images, boundary F-score.

python eval.py --data_path=ISAID_PATCHES --checkpoint_path=FILE.ckpt
python eval.py --data_path=ISAID_PATCHES --scales=0.75,1,1.25 --flip=true
python eval.py --data_path=DATA --inference_mode=sliding
"""

from model_utils.entry import evaluate
from src.task import PFNetTask

if __name__ == "__main__":
    evaluate(PFNetTask())
