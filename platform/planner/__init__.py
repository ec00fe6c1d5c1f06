"""The planner: how many workers of which role keep the promised latencies with the fewest GPUs."""
