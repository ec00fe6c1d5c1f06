"""Model architectures, one file each, on shared layers."""
