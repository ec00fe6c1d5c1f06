"""Reads what a model says: its reasoning, its tool calls, and the rest, however it is cut."""
