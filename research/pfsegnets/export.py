"""Export PFNet's prediction build to MINDIR, ONNX or AIR and compare it with the checkpoint.

python export.py --checkpoint_path=FILE.ckpt --file_format=MINDIR
python export.py --checkpoint_path=FILE.ckpt --file_format=ONNX --height=896 --width=896
python export.py --checkpoint_path=FILE.ckpt --file_format=ONNX --export.output=classes
"""

from model_utils.entry import export
from src.task import PFNetTask

if __name__ == "__main__":
    export(PFNetTask())
