"""Pipelines that a downloaded model needs; each file stands alone and imports nothing of ours."""
