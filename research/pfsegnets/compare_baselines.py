"""Train a per-pixel classifier without a neural network on the same split and measure it.

python compare_baselines.py --config_path=dronedeploy --data_path=DRONEDEPLOY
"""

from model_utils.entry import command
from model_utils.pixel_classifier import report
from src.task import PFNetTask

if __name__ == "__main__":
    command(PFNetTask(), "baselines", report)
