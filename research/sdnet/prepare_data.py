"""Cut 64 x 64 patches around SIFT keypoints out of registered optical and SAR images.

python prepare_data.py --data_path=SEN1-2 --output_path=PATCHES
python prepare_data.py --data_path=IMAGES --prepare.splits=IMAGES --output_path=PATCHES
"""

from model_utils.entry import prepare
from src.task import SDNetTask

if __name__ == "__main__":
    prepare(SDNetTask())
