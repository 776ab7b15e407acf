"""Time SDNet's training step and inference beside PyTorch and the published way to step.

python benchmark.py
python benchmark.py --batch_size 100 --rounds 5
"""

from src.benchmarking import main

if __name__ == "__main__":
    raise SystemExit(main())
