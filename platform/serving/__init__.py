"""Serving from a fleet: who the workers are, where requests go, and what happens when one dies."""
