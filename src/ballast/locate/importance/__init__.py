"""How much a sublayer's output changes without one of its neurons."""
