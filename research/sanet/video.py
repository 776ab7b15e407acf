"""Segment a video: frames in, a video with class colours out.

python video.py --checkpoint_path=FILE.ckpt --video=DRIVE.mp4
python video.py --checkpoint_path=FILE.ckpt --video=FRAMES --rate=17 --draw=both
"""

from model_utils.entry import command
from src.task import SANetTask
from src.tools.video import video

if __name__ == "__main__":
    command(SANetTask(), "video", video)
