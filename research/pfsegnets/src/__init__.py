"""PFNet; see the folder's README."""
