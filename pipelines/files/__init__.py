"""Files on a disk: the names that may be joined to a folder, how files are read, and how they are written."""
