"""The model card: rendered from files, and checked against them."""
