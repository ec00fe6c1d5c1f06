"""KV blocks: their hashes, their events, and the ways they move between processes."""
