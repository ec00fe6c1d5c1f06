"""Leases: who may read, or fill, which blocks of a pool, and until when."""
