"""What commands do, and their one-line forms in Python: distil, evaluate, sample, plan."""
