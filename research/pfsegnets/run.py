"""The Gaofen contest's entry: masks of 0 and 255 for a folder of images, either track.

python run.py INPUT_FOLDER OUTPUT_FOLDER
python run.py INPUT_FOLDER OUTPUT_FOLDER --config_path=gaofen_sar --checkpoint_path=FILE
"""

from src.contest import main

if __name__ == "__main__":
    main()
