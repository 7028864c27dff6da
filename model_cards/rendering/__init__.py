"""The model card: rendered from files, and compared with them."""
