"""The OpenAI-compatible API: one ASGI application on any generator of tokens."""
