"""What the networks of this repository share, once: see docs/architecture.md."""
