"""Models -> a repository that a Triton Inference Server loads."""
