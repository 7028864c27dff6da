"""Files: how they are named, read and written, for all floors; no torch here."""
