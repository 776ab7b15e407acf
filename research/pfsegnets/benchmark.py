"""Time PFNet's inference and training step beside PyTorch, taking turns.

python benchmark.py
python benchmark.py --backbone=resnet50,res2net101 --height=896 --width=896
python benchmark.py --contenders=resnet50-eager,resnet50-onnxruntime --rounds=10
"""

from src.benchmarking import main

if __name__ == "__main__":
    raise SystemExit(main())
