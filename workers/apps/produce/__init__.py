"""Ticks into the topic: from files, from a pipe, from a synthetic market."""
