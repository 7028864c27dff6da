"""What `benchmarks/cost_model.py` computes and measures."""
