"""The digital twin: how fast it simulates."""
