"""Data, noising, objectives and the loop that trains them."""
