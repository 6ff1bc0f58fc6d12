"""Torch data sets over output folders: exact crops, masks, length buckets, statistics."""
