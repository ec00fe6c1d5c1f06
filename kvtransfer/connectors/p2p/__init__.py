"""KV blocks from one engine to another: leased by the one, read by the other."""
