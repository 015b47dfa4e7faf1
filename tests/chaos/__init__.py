"""Chaos: real workers on a real broker, harmed on purpose, judged by a verifier that reads only topics."""
