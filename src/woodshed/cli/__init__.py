"""The command line: parse, call a job, show what came of it. Computes nothing."""
