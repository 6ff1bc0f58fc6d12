"""What is done with speech features before and after they are made: rows, splits, pairs, leaks, manifests."""
