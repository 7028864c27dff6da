"""What `benchmarks/bench.py` and `benchmarks/time_to_quality.py` measure, and how."""
