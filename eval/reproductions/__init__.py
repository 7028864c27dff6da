"""Published studies run again: what they measured, their settings, and ours at equal compute."""
