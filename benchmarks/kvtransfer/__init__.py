"""Block hashes, transfers and tiers beside their peers."""
