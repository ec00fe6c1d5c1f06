"""The KV-aware router: which worker a request costs least on."""
