"""The data-set doctor for records of a language model."""
