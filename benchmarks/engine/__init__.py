"""The engine alone: no router, no transfers, no HTTP."""
