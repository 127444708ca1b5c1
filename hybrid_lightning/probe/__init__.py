"""Plain torch: what features say about a target, by fits in closed form, and convex blends of such votes."""
