"""Several ranks: sharding, fsdp2, and the wrapper that follows what trains."""
