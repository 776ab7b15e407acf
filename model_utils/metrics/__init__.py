"""Figures of merit shared by several networks; import the module you need."""
