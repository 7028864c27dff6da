"""Studies: grids of models, and tables of several."""
