"""Metrics over the kept features of some samples, a file each; the machinery is `KeptRows` in `pairs.py`."""
