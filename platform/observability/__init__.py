"""What a fleet counts and traces, how Prometheus reads it, and the dashboards and alerts on it."""
