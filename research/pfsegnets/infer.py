"""Segment images or whole scenes: class numbers, class colours and overlays.

python infer.py --checkpoint_path=FILE.ckpt --images=PHOTO.png
python infer.py --checkpoint_path=FILE.ckpt --images=FOLDER --scales=0.75,1,1.25 --flip=true
python infer.py --checkpoint_path=FILE.ckpt --scene=SCENE.tif
"""

from model_utils.entry import infer
from src.task import PFNetTask

if __name__ == "__main__":
    infer(PFNetTask())
