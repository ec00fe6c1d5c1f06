"""stafette: a language model served from a fleet, the KV cache handed over like a baton."""
