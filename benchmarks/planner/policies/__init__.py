"""Ways to size a fleet: each is a twin's `on_tick`."""
