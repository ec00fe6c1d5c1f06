"""Native helpers: optional plain C++ behind ctypes, each with a pure fallback beside its caller."""
