"""KV events on their way: a worker publishes them, any number of others follow many workers."""
