"""A worker without a model: the real scheduler, KV pool, events and service; modelled step times.

Nothing here imports torch: hundreds of mock workers live in one process.
"""
