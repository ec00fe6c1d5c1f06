"""How fast the way from a client to an engine and back is."""
