"""Measure how fast training samples are read, and which part takes how long.

python reading_speed.py --config_path=camvid_cpu --data_path=CAMVID --data.workers=2
"""

from model_utils.entry import command
from src.task import SANetTask
from src.tools.reading_speed import reading_speed

if __name__ == "__main__":
    command(SANetTask(), "reading_speed", reading_speed)
