"""SANet's own modules."""
