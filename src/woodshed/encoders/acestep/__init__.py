"""ACE-Step: songs to what its diffusion transformer trains on."""
