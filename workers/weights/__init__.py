"""Checkpoints: reading weights and tokenizers from every format the engine takes."""
