"""Measuring a plan on a device: files, shapes and arrays; no torch and no search code.

Needs Python, numpy and the package of the engine that is asked for. PyTorch is one of these: only the files of its
engines import it.
"""
