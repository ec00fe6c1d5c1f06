"""The worker as a service: its engine, for frontends in other processes, on one stream each."""
