"""Training examples for the embedded judge, all written for this project; `examples.py` puts them together."""
