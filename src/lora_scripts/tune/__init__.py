"""Short runs that tell which value of a key is the best, by held-out loss."""
