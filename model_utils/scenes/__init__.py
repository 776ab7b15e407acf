"""Whole scenes: rasters of any size through a network, tile by tile, in bounded memory."""
