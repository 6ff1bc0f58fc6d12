"""Which layers of a model a data set needs: gradients measured, ranks allocated, maps written (`fisher_map.json`)."""
