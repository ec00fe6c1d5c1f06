"""Side-by-side runs against peers and against our own simpler forms; one folder a subject."""
