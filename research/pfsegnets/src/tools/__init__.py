"""Tools around PFNet's data: cropping, converting masks, putting patches together again."""
