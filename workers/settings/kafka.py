"""The section ``[kafka]``: Kafka's own client settings, under Kafka's own names and in Kafka's own units."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from workers.settings.section import Section
from workers.settings.values import MAX_INT32, Int32, Secret, Text, allowed, lower, upper

__all__ = ["MANAGED", "NO_KEYSTORE", "SYNONYMS", "KafkaSettings"]

NO_KEYSTORE: Final = (
    "Java keystores (JKS, PKCS12) can't be read here; convert it to PEM, "
    "with keytool -importkeystore -deststoretype PKCS12 and then openssl pkcs12 -nodes"
)
"""Why a keystore is refused, and what to do about it."""


def _acks(value: object) -> object:
    text = str(value).lower() if isinstance(value, (int, str)) and not isinstance(value, bool) else value
    return "all" if text == "-1" else text


def _host_check(value: object) -> object:
    return "none" if value == "" else lower(value)


def _pem_path(value: object) -> object:
    if isinstance(value, str) and value.lower().endswith((".jks", ".p12", ".pfx", ".pkcs12")):
        raise ValueError(NO_KEYSTORE)
    return value


def _pem_type(value: object) -> object:
    kind = upper(value)
    if kind in ("JKS", "PKCS12"):
        raise ValueError(NO_KEYSTORE)
    return kind


def _login_mechanism(value: object) -> object:
    mechanism = upper(value)
    if mechanism in ("GSSAPI", "OAUTHBEARER"):
        raise ValueError(f"{mechanism} needs a login callback, which a configuration can't carry")
    return mechanism


_PemPath = Annotated[
    str | None, BeforeValidator(_pem_path), Field(min_length=1, json_schema_extra=allowed("the path of a PEM file"))
]
_SecurityProtocol = Annotated[Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"], BeforeValidator(upper)]
_SaslMechanism = Annotated[Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"], BeforeValidator(_login_mechanism)]


def _kafka_name(field_name: str) -> str:
    return field_name.replace("_", ".")


class KafkaSettings(Section):
    """Kafka's own client settings under Kafka's own names (dots for underscores) and units (the last word).

    Every client is meant where the description names none.
    """

    model_config = ConfigDict(alias_generator=_kafka_name, populate_by_name=True)

    security_protocol: _SecurityProtocol = Field(
        default="PLAINTEXT",
        description="How to connect to the brokers: with encryption (SSL), a login (SASL), or both.",
    )
    sasl_mechanism: _SaslMechanism = Field(default="PLAIN", description="Authentication mechanism.")
    sasl_username: Text = Field(default=None, description="User name.")
    sasl_password: Secret = Field(default=None, description="Password.")
    sasl_jaas_config: Secret = Field(
        default=None,
        description="Login in the Java clients' form (PlainLoginModule or ScramLoginModule), "
        "instead of `sasl.username` and `sasl.password`.",
    )
    ssl_ca_location: _PemPath = Field(
        default=None,
        description="Certificates to trust; the system's if not set. Also `ssl.cafile`, `ssl.truststore.location`.",
    )
    ssl_truststore_type: Annotated[Literal["PEM"], BeforeValidator(_pem_type)] = Field(
        default="PEM", description="Format of the trusted certificates."
    )
    ssl_certificate_location: _PemPath = Field(
        default=None,
        description="This client's certificate chain, with its key unless `ssl.key.location` is given. "
        "Also `ssl.certfile`, `ssl.keystore.location`.",
    )
    ssl_key_location: _PemPath = Field(default=None, description="This client's private key. Also `ssl.keyfile`.")
    ssl_keystore_type: Annotated[Literal["PEM"], BeforeValidator(_pem_type)] = Field(
        default="PEM", description="Format of this client's certificate and key."
    )
    ssl_key_password: Secret = Field(default=None, description="Passphrase of the private key.")
    ssl_endpoint_identification_algorithm: Annotated[Literal["https", "none"], BeforeValidator(_host_check)] = Field(
        default="https", description="none: don't verify that a broker's certificate matches its host name."
    )
    client_id: Text = Field(
        default=None, description="Name in the brokers' logs and quotas; `application_id` if not set."
    )
    client_rack: Text = Field(
        default=None, description="Consumer: rack of this client, to fetch from a nearby replica."
    )
    request_timeout_ms: Int32 = Field(default=40_000, description="Request timeout.")
    metadata_max_age_ms: Int32 = Field(default=300_000, description="Age at which metadata is refreshed.")
    retry_backoff_ms: Int32 = Field(
        default=10,
        description="Pause before a retry; short, because a transaction often starts while the last one completes.",
    )
    connections_max_idle_ms: Int32 = Field(default=540_000, description="Idle time after which a connection is closed.")
    group_instance_id: Text = Field(
        default=None,
        description="Consumer: static membership, so that a restart moves no partitions; unique per worker.",
    )
    session_timeout_ms: Int32 = Field(
        default=10_000, description="Consumer: time without a heartbeat after which a worker is considered dead."
    )
    heartbeat_interval_ms: Int32 = Field(
        default=1_000,
        description="Consumer: time between heartbeats, by whose answers a worker learns of a rebalance; at most a "
        "third of the session timeout.",
    )
    rebalance_timeout_ms: Int32 = Field(
        default=60_000, description="Consumer: time to finish and commit before partitions move."
    )
    max_poll_interval_ms: Int32 = Field(
        default=300_000, description="Consumer: time without a fetch after which a worker leaves the group."
    )
    auto_offset_reset: Annotated[Literal["earliest", "latest"], BeforeValidator(lower)] = Field(
        default="earliest", description="Consumer: where to start a partition without a committed offset."
    )
    isolation_level: Annotated[Literal["read_committed", "read_uncommitted"], BeforeValidator(lower)] = Field(
        default="read_committed", description="Consumer: whether to read ticks of open and aborted transactions."
    )
    fetch_min_bytes: Int32 = Field(default=1, description="Consumer: minimum bytes per fetch.")
    fetch_max_wait_ms: Int32 = Field(
        default=50,
        description="Consumer: how long a broker waits for them; a quiet partition delays its broker's others by this.",
    )
    fetch_max_bytes: Int32 = Field(default=52_428_800, description="Consumer: maximum bytes per fetch.")
    max_partition_fetch_bytes: Int32 = Field(
        default=262_144, description="Consumer: maximum bytes per partition in a fetch; smaller is fairer."
    )
    acks: Annotated[Literal["all", "1", "0"], BeforeValidator(_acks)] = Field(
        default="all",
        description="Producer: acknowledgements to wait for; exactly_once needs all, at_least_once anything but 0.",
    )
    compression_type: Annotated[Literal["none", "gzip", "snappy", "lz4", "zstd"], BeforeValidator(lower)] = Field(
        default="lz4", description="Producer: compression of batches."
    )
    linger_ms: int = Field(
        default=0, ge=0, le=MAX_INT32, description="Producer: how long a batch waits for more records."
    )
    batch_size: Int32 = Field(default=1_048_576, description="Producer: maximum bytes per batch.")
    max_request_size: Int32 = Field(
        default=1_048_576, ge=1_024, le=MAX_INT32, description="Producer: maximum bytes per request, and so per frame."
    )
    transaction_timeout_ms: Int32 = Field(
        default=30_000,
        ge=1_000,
        le=900_000,
        description="Producer: age at which the broker aborts an unfinished transaction.",
    )

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.security_protocol in ("SSL", "SASL_SSL")

    @property
    def uses_sasl(self) -> bool:
        """Whether there is a login."""
        return self.security_protocol in ("SASL_PLAINTEXT", "SASL_SSL")


SYNONYMS: Final = {
    "ssl.cafile": "ssl.ca.location",
    "ssl.truststore.location": "ssl.ca.location",
    "ssl.certfile": "ssl.certificate.location",
    "ssl.keystore.location": "ssl.certificate.location",
    "ssl.keyfile": "ssl.key.location",
}
"""Names that other clients have for a setting, and Kafka's own."""
MANAGED: Final = {
    "bootstrap.servers": "set bootstrap_servers at the top of the file, or KAFKA_BOOTSTRAP_SERVERS",
    "group.id": "the group is the application_id",
    "group.protocol": "only the classic protocol is supported",
    "enable.auto.commit": "offsets are committed together with frames; see commit_interval",
    "auto.commit.interval.ms": "offsets are committed together with frames; see commit_interval",
    "transactional.id": "derived from application_id and the partition, which is what makes fencing sound",
    "enable.idempotence": "follows acks: on with all",
    "max.poll.records": "see lane.batch_size",
    "partition.assignment.strategy": "how partitions move is fixed, since state moves with them",
    "partitioner": "frames go where murmur2 of their key says",
    "partitioner.class": "frames go where murmur2 of their key says",
    "ssl.truststore.password": f"PEM certificates have none. {NO_KEYSTORE}",
    "ssl.keystore.password": f"the passphrase of a PEM key is ssl.key.password. {NO_KEYSTORE}",
}
"""Kafka's names that can't be set here, and why: each would break a promise, or is set elsewhere."""
