"""Images: where they come from, decoded once, in memory, in batches."""
