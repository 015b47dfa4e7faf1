"""Kafka workers for market ticks."""
