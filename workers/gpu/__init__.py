"""What all Triton kernels here share: how they are launched, and how they wait for one another."""
