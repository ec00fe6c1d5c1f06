"""The KV block manager: blocks that leave the device wait on the host, on disk, or with a peer."""
