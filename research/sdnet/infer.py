"""Match an optical with a SAR image and draw the matches.

python infer.py --checkpoint_path=FILE.ckpt --optical=A.png --sar=B.png
"""

from model_utils.entry import infer
from src.task import SDNetTask

if __name__ == "__main__":
    infer(SDNetTask())
