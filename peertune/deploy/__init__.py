"""A run whose agents live in other organisations, on NVIDIA FLARE (extra `peertune[flare]`)."""
