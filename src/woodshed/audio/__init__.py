"""Sound files: what they are, their samples at any rate and with any number of channels, and writing them."""
