"""Plain torch: named groups, learning-rate schedules, optimizers from plain settings."""
