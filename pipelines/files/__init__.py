"""Files that others wrote or that may be damaged: one reader of each kind; no torch here."""
