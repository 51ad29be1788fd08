"""Verbs of the command line that are not about a run."""
