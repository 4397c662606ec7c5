"""The gap curve, scaled layers and the search for a window of them."""
