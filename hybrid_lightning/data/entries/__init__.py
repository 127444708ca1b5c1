"""The kinds of input that a manifest can have."""
