"""Hand-over: a prompt's KV blocks from the engine that computed them to the one that goes on."""
