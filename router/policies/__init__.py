"""The ways to choose a target, each in a file, behind one contract."""
