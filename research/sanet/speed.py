"""Time the network on every backend, with BatchNorm folded and not, in float32 and float16.

python speed.py --variant=S --height=512 --width=1024
python speed.py --checkpoint_path=FILE.ckpt --backends=onnxruntime --repeats=100
"""

from model_utils.entry import command
from src.task import SANetTask
from src.tools.speed import speed

if __name__ == "__main__":
    command(SANetTask(), "speed", speed)
