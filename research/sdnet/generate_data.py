"""Write a small made-up data set in SEN1-2's format.

python generate_data.py --output_path=DATA --seed=0
"""

from model_utils.entry import generate
from src.task import SDNetTask

if __name__ == "__main__":
    generate(SDNetTask())
