"""What makes the torch engine fast on a CUDA GPU: fewer passes over memory, fewer launches."""
