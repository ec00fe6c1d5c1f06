"""What of the router is native: optional plain C++, each with a fallback in plain Python."""
