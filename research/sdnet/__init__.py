"""SDNet: optical-SAR patch matching (Quan et al., IEEE TGRS 2022)."""

from .src.api import SDNet

__all__ = ["SDNet"]
