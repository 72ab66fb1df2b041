"""`peertune compare`: several methods on the same agents, data, budget and seeds, and what each costs."""
