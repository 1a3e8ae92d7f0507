"""What ranks do in tests: each function takes the rank's group first."""
