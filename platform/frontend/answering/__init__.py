"""Writes answers, whole or chunk by chunk, in the form of each endpoint."""
