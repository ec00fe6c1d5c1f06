"""Reads by NIXL: the reader's side does them, the owner's processor need not."""
