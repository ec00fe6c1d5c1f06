"""How fast workers are: measured, estimated from data sheets, and what to make of it."""
