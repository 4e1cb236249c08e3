"""Records that a language model learns, and the files that they lie in."""
