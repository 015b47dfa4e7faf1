"""What tests share: oracles written apart from the code, strategies, fixtures."""
