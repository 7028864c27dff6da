"""The page that draws from a model, on this machine (`model_cards/demo.py`) or in a Space on the Hub."""
