"""One causal language model and the LoRA adapters of all agents that share it."""
