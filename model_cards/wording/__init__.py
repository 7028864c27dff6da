"""What a card says of each family."""
