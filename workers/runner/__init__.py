"""Runners: what turns a batch of scheduled tokens into logits on a device."""
