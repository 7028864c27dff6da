"""Model cards, Hub bundles and publishing."""
