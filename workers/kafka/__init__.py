"""All that touches the Kafka client: reading, committing, topics, offsets, and repairs of the client itself.

- `changelog`: reading a partition's state back
- `commit`: the commit, and one transactional producer per input partition
- `process`: one transactional producer for all partitions of a process
- `takeover`: ending what another worker's transaction holds of a partition
- `connection`: reaching the cluster, and saying why it can't be reached
- `consumer`: the group's consumer: ownership, positions, pauses, batches
- `fetch_hook`: whole record batches from the consumer
- `group_offsets`: the group's committed offsets and lag
- `hanging`: transactions that a broker decided and did not finish: found, and finished, before state is read
- `log_reader`: stretches of partitions, read from outside the group
- `lz4`: lz4 at the level that is fast
- `protocol`: requests of Kafka's protocol that the client lacks
- `transactions`: questions about transactions: who has one open where
- `repairs`: aiokafka's clients: repairs, and ends within a bound
- `topics`: what the topics must be like; making and checking them
- `acls`: what a cluster with authorization must allow: the one list of it
- `clients`: opening and closing what talks to the cluster: the admin client, and producers outside transactions
- `cluster`: the cluster of an application, as `workers.kafka.ports.Kafka` has it: topics, consumer, sinks, changelog
- `backoff`: rests between attempts
- `errors`: the Kafka client's errors that the rest of this package knows, under its own names, and sorted by what to
  do
- `fit`: what is done about records that their topics would refuse as too large
- `group_members`: who is in the consumer group, and which partitions each member owns
- `internals`: the insides of aiokafka 0.14 that are used, and not changed: its private names stand here, and in few
  other places
- `memory`: kafka in memory: an application's topics, its group, and commits that are fenced
- `metadata`: topics' ids, and requests that make the broker create none
- `options`: what the Kafka client is given: the settings as its keyword arguments, with certificates and logins read
- `ports`: what a worker asks of Kafka, and what passes between them
- `reading`: reading a topic from outside any group: nothing is committed, and nobody loses a partition to it
- `record_times`: times of records that a topic refuses: how far ahead of its brokers' clocks they may be, and what is
  said of it
- `refusals`: what a cluster refuses for good, in the user's words: who lacks which right, which limit is too low
- `unpacking`: record batches unpacked by Python's own libraries, up to a limit
- `sighting`: whether the topics are still those that an application began with
- `reconnecting`: A task that works through outages: what ends its work is told, and after a rest the work begins
  again
"""
