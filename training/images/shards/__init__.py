"""Data larger than the memory and the disk: shards that are read while a model trains, never as a whole."""
