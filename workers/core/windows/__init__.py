"""Windows: which ones a time belongs to, when each comes out, and what every kind adds to that; a file a kind."""
