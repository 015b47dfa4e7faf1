"""What records say, in each format that is read."""
