"""What is asked of a fleet, and when."""
