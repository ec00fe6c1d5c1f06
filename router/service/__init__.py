"""The router as a service of its own: HTTP with JSON or msgpack, for stacks that are not ours."""
