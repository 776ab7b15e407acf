"""Take over SANet weights trained elsewhere, or write them under the reference's names.

python convert.py --source=best.pt --output=sanet.ckpt
python convert.py --source=sanet.ckpt --output=reference.npz --reverse
"""

from model_utils.entry import convert
from src.task import SANetTask

if __name__ == "__main__":
    convert(SANetTask())
