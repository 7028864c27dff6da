"""Pictures of how a trained model works, a file for each family."""
