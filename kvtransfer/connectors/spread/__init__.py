"""p2p for a worker whose shares lie on several hosts, each with an agent of its own."""
