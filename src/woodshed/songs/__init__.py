"""Data sets of songs: their sidecars, tags and the estimates that fill gaps."""
