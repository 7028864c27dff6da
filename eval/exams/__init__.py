"""The exam of the measures: what is done to good samples, how it is scored, and which measures pass."""
