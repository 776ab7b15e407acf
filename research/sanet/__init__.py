"""SANet: real-time street segmentation (Wang et al., arXiv 2309.10519)."""

from .src.api import SANet

__all__ = ["SANet"]
