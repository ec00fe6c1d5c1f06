"""What the frontend measures, and how Prometheus reads it."""
