"""Measure hand-crafted similarities on the same patches as eval.py.

python compare_baselines.py --data_path=PATCHES --split=test
"""

from model_utils.entry import command
from src.baselines import report
from src.task import SDNetTask

if __name__ == "__main__":
    command(SDNetTask(), "baselines", report)
