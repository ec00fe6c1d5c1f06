"""Process groups of two: how they are made, and how a job's bytes go through them."""
