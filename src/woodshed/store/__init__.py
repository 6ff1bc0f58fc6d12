"""The crash-proof output folder: commits, layouts, and reading back."""
