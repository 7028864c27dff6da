"""Folders for strangers: bundled, uploaded, checked again."""
