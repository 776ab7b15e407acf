"""PFNet: aerial segmentation with PointFlow (Li et al., CVPR 2021)."""

from .src.api import PFSegNets

__all__ = ["PFSegNets"]
