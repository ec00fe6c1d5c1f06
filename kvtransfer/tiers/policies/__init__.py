"""Eviction policies by name; each is a file of its own."""
