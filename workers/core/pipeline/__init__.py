"""What ticks pass before the windows, where it is configured; a file an operator."""
