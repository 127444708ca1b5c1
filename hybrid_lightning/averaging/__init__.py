"""Averages of weights, which are served in place of those that train."""
