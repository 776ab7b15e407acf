"""Put patches together to whole images: masks, predicted classes or probabilities.

python stitch.py --stitch.source=PATCHES/val/masks --output_path=MASKS --colours=true
python stitch.py --stitch.source=PREDICTIONS --overlap=centre --output_path=MAPS
python stitch.py --stitch.source=PROBABILITIES --overlap=mean --output_path=MAPS
"""

from model_utils.entry import command
from src.task import PFNetTask
from src.tools.stitching import stitch

if __name__ == "__main__":
    command(PFNetTask(), "stitch", stitch)
