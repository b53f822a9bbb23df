"""Baselines: networks that see the images."""
