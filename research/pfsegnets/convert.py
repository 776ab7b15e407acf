"""Take over PFNet weights trained elsewhere, or write them under the reference's names.

python convert.py --source=last_epoch_15.pth --output=pfnet_isaid.ckpt
python convert.py --source=resnet50-deep.pth --output=encoder.ckpt --allow_missing=true
python convert.py --source=pfnet.ckpt --output=reference.npz --reverse
"""

from model_utils.entry import convert
from src.task import PFNetTask

if __name__ == "__main__":
    convert(PFNetTask())
