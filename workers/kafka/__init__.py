"""All that touches the Kafka client: reading, committing, topics, offsets, and repairs of the client itself."""
