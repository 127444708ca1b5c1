"""Norms of a step's gradients, and what follows from them: limits, logs, steps that are not made."""
