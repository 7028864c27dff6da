"""Model folders for other people: bundled with their code, uploaded, and checked after download."""
