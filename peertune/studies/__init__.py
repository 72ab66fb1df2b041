"""Studies: what a claim of this project rests on, one command each. `peertune study NAME` runs one."""
