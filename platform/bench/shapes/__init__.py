"""The load shapes: each says what comes, and when."""
