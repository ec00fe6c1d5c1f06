"""The router beside others: look-ups, events, memory, placements, and a trace of real requests."""
