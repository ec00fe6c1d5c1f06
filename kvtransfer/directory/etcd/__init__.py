"""The directory in an etcd: its messages, its client, and the store that is made of them."""
