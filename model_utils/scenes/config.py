"""Keys that say how scenes are processed."""

from dataclasses import dataclass

from model_utils.config import key


@dataclass
class SceneConfig:
    """Keys of infer.py for whole scenes: GeoTIFF, COG, PNG, whatever GDAL reads, of any size."""

    source: str = key("", "a scene, or a folder of scenes, of any size", "scene")
    tile: int = key(1024, "side of a tile in pixels; networks may need a multiple", minimum=16)
    halo: int = key(
        96,
        "pixels along a tile's inner borders that never reach the result; where they cover the "
        "receptive field, the result does not depend on the tiles",
        minimum=0,
    )
    blend: str = key(
        "cosine",
        "how neighbouring tiles fade into each other behind their halos; flat: a sharp seam",
        choices=("flat", "cosine", "gaussian"),
    )
    blend_width: int = key(64, "pixels across which they fade", minimum=1)
    result: str = key(
        "classes", "class numbers, or the probability of each class",
        choices=("classes", "probabilities")
    )  # fmt: skip
    probability_type: str = key(
        "uint8",
        "uint8: 254 is 1, with the scale in the file; or float32, four times as large",
        choices=("uint8", "float32"),
    )
    bands: list[int] = key(
        [], "bands the network takes, counted from 1; empty: red, green, blue if the scene says "
        "which they are, else all but alpha in order", minimum=1
    )  # fmt: skip
    value_range: list[float] = key(
        [], "values that become 0 and 255; empty: 8 bits as they are, 16 bits by their whole range"
    )
    compress: str = key(
        "deflate", "compression of the result", choices=("deflate", "zstd", "lzw", "none")
    )
    overviews: str = key(
        "auto",
        "how reduced copies are made; auto: nearest for classes, average for probabilities",
        choices=("auto", "nearest", "mode", "average", "none"),
    )
    resume: bool = key(True, "go on where an earlier run of the same kind stopped")
    most_tiles: int = key(
        0, "stop after so many tiles, for the next run to go on; 0 does all", minimum=0
    )
