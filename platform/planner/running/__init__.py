"""The planner of a fleet that runs: it observes frontends and workers, and carries plans out."""
