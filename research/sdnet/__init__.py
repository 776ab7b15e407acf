"""SDNet: optical-SAR patch matching (Quan et al., IEEE TGRS 2022)."""
