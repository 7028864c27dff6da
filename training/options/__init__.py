"""Flags, groups of options, and the command line of every entry point; no torch here."""
