"""The processes, the network and the mischief of the soak."""
