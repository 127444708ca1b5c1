"""What frozen parts make of samples, computed once and served in place of what they read."""
