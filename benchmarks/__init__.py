"""One table per claim: speed, memory and distance from a plain reference."""
