"""The exam of the measures: harms to good samples, their scores, and the measures that pass."""
