"""The control plane: authenticated connections on which agents ask each other small questions."""
