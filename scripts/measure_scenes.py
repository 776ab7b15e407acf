"""Measure what whole scenes cost: memory, time beside the network, restarts.

python scripts/measure_scenes.py memory
python scripts/measure_scenes.py restart
python scripts/measure_scenes.py network --network=sanet --infer.scene.tile=1024
"""

from model_utils.entry import guarded
from model_utils.scenes.measuring import main

if __name__ == "__main__":
    guarded(main)
