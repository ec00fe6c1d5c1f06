"""Memory of GPUs that processes on one host share, by CUDA's driver."""
