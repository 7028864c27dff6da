"""Metrics: what is measured of samples."""
