"""Which peers live, where they are, and who is told of it."""
