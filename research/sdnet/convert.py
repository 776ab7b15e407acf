"""Take over SDNet weights trained elsewhere, or write them under the reference's names.

python convert.py --source=checkpoint_SDNet_20.ckpt --output=sdnet.ckpt
python convert.py --source=sdnet.ckpt --output=reference.npz --reverse
"""

from model_utils.entry import convert
from src.task import SDNetTask

if __name__ == "__main__":
    convert(SDNetTask())
