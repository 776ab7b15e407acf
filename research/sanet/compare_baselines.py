"""Train a per-pixel classifier without a neural network on the same split and measure it.

python compare_baselines.py --config_path=camvid_cpu --data_path=CAMVID
"""

from model_utils.entry import command
from model_utils.pixel_classifier import report
from src.task import SANetTask

if __name__ == "__main__":
    command(SANetTask(), "baselines", report)
