"""Plain torch: parts, stages, fusion and the network that joins them."""
