"""A first config for a table of one's own: what its columns hold, and which parts suit them."""
