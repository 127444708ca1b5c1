"""Continuing a fit from any checkpoint as if it had never stopped."""
