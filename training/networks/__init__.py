"""Networks: rows, building, weights to start from."""
