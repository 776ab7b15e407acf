"""Count parameters and multiply-adds of every module, for S, M and L.

python complexity.py --sizes=1024x2048,720x960
"""

from model_utils.entry import command
from src.task import SANetTask
from src.tools.complexity import complexity

if __name__ == "__main__":
    command(SANetTask(), "complexity", complexity)
