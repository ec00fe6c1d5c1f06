"""The digital twin: a fleet on a virtual clock, with the router and schedulers of a real one."""
