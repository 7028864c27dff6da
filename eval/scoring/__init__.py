"""Scoring: what is compared with what, and what is written of it."""
