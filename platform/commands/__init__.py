"""The commands of `stafette`, one module each: `add_arguments(parser)` and `run(arguments)`."""
