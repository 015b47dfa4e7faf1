"""All that touches the Kafka client: reading, committing, topics, offsets, and repairs of the client itself.

- `changelog`: reading a partition's state back
- `commit`: one transactional producer per input partition, and the commit
- `connection`: reaching the cluster, and saying why it can't be reached
- `consumer`: the group's consumer: ownership, positions, pauses, batches
- `fetch_hook`: whole record batches from the consumer
- `group_offsets`: the group's committed offsets and lag
- `hanging`: transactions that a broker decided and did not finish: found, and finished, before state is read
- `log_reader`: stretches of partitions, read from outside the group
- `lz4`: lz4 at the level that is fast
- `repairs`: aiokafka's clients: repairs, and ends within a bound
- `topics`: what the topics must be like; making and checking them
- `acls`: what a cluster with authorization must allow: the one list of it
"""
