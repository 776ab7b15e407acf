"""Draw which places of an image speak for each class (Grad-CAM).

python heatmap.py --checkpoint_path=FILE.ckpt --images=PHOTO.jpg
python heatmap.py --checkpoint_path=FILE.ckpt --images=PHOTO.jpg --heatmap.classes=car,road
python heatmap.py --checkpoint_path=FILE.ckpt --images=PHOTO.jpg --layer=layer5
"""

from model_utils.entry import command
from src.task import SANetTask
from src.tools.heatmap import heatmap

if __name__ == "__main__":
    command(SANetTask(), "heatmap", heatmap)
