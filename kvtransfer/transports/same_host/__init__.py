"""What shm and process_vm share: leases seen in the owner's ledger, and the jobs of a reader."""
