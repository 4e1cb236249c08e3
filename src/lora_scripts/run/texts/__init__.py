"""A training run of a language model: what differs from one of pictures. The loop, the state, measuring and resuming
are the same."""
