"""The families: the options, recipes and construction of each."""
