"""Export SDNet to MINDIR, ONNX or AIR and compare the file with the checkpoint.

python export.py --checkpoint_path=FILE.ckpt --file_format=MINDIR
python export.py --checkpoint_path=FILE.ckpt --file_format=ONNX --batch_size=0
"""

from model_utils.entry import export
from src.task import SDNetTask

if __name__ == "__main__":
    export(SDNetTask())
