"""What a run runs on: several processes, limited memory, arithmetic of several precisions."""
