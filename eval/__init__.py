"""Metrics, their statistics, and the entry points that compute them."""
