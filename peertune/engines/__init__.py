"""How agents are reached: `local` (this machine)."""
