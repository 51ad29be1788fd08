"""Parts that hwnas does not have, each one file, added through its public registries.

They are imported in processes of their own (tests/test_extension.py): what a test registers is there for all others.
"""
