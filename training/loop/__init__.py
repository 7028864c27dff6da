"""The training loop and all that a run keeps: averages, checkpoints, records."""
