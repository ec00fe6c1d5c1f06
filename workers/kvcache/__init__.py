"""The paged KV cache: block pool, prefix index, eviction."""
