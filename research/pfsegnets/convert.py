"""Take over PFNet weights trained elsewhere, or write them under the reference's names.

python convert.py --source=best.pt --output=sanet.ckpt
python convert.py --source=sanet.ckpt --output=reference.npz --reverse
"""

from model_utils.entry import convert
from src.task import PFNetTask

if __name__ == "__main__":
    convert(PFNetTask())
