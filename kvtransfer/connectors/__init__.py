"""Connectors: how an engine gets KV blocks from elsewhere, and passes its own on."""
