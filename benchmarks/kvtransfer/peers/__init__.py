"""The systems that are compared, each in processes of its own, and what they have in common."""
