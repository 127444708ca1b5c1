"""Weights: files that cannot run code, and loading them into parts."""
