"""What people are told in Chinese: the words, and who is told so. Pages and terminal look up the same catalogue."""
