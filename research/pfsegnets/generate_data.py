"""Write a small made-up iSAID, as distributed: whole images with colour masks.

python generate_data.py --output_path=DATA --seed=0
"""

from model_utils.entry import generate
from src.task import PFNetTask

if __name__ == "__main__":
    generate(PFNetTask())
