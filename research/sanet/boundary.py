"""Draw the boundary head's map of images, or the class boundaries of masks.

python boundary.py --checkpoint_path=FILE.ckpt --images=PHOTO.jpg
python boundary.py --config_path=camvid_s --masks=LABELS
"""

from model_utils.entry import command
from src.task import SANetTask
from src.tools.boundary import boundary

if __name__ == "__main__":
    command(SANetTask(), "boundary", boundary)
