"""One runner script for each engine that is compared; each runs in an environment of its own."""
