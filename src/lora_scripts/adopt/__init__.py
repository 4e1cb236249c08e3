"""Configs of other trainers, in our keys."""
