"""Untrained networks that a part may name."""
