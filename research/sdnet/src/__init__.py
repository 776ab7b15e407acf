"""SDNet: network, losses, data, metrics."""
