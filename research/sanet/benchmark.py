"""Time SANet's inference and training step beside PyTorch, taking turns.

python benchmark.py
python benchmark.py --variant=S --height=720 --width=960
python benchmark.py --contenders=S-eager,S-onnxruntime --rounds=10
"""

from src.benchmarking import main

if __name__ == "__main__":
    raise SystemExit(main())
