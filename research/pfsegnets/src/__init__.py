"""PFNet's own modules."""
