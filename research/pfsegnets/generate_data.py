"""Write a small made-up Cityscapes.

python generate_data.py --output_path=DATA --seed=0
"""

from model_utils.entry import generate
from src.task import PFNetTask

if __name__ == "__main__":
    generate(PFNetTask())
