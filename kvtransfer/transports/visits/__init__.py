"""Visits: how a reader asks an owner for a read, where the bytes travel beside that connection."""
