"""The routers that are measured, each in a process of its own, behind one protocol."""
