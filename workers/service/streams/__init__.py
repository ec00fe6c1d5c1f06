"""What carries the messages between a frontend and a worker."""
