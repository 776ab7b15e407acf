"""Time cropping iSAID images beside a loop over Pillow, with peak memory and size of the files.

python benchmark_tools.py
python benchmark_tools.py --data_path=ISAID_IMAGES --sizes=2000x2000,4000x4000,13000x4000
"""

from src.tools.comparison import main

if __name__ == "__main__":
    raise SystemExit(main())
