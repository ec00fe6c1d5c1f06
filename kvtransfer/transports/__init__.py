"""The ways on which blocks travel, one module each: `registry.make` finds them by name."""
