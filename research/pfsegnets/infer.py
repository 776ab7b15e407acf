"""Segment an image or a folder of images: class numbers, class colours and overlays.

python infer.py --checkpoint_path=FILE.ckpt --images=PHOTO.jpg
python infer.py --checkpoint_path=FILE.ckpt --images=FOLDER --config_path=camvid_s
"""

from model_utils.entry import infer
from src.task import PFNetTask

if __name__ == "__main__":
    infer(PFNetTask())
