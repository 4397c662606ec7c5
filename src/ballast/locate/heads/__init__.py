"""Attention heads that are silenced while the model runs."""
