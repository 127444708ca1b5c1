"""Continuing a run from any checkpoint as if it had never stopped."""
