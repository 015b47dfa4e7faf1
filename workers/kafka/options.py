"""What the Kafka client is given: the settings as its keyword arguments, with certificates and logins read.

The client itself is not imported here: ``workers config check`` reads the certificates and needs nothing else.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from workers.errors import ConfigError
from workers.settings.jaas import parse_jaas
from workers.settings.kafka import NO_KEYSTORE
from workers.settings.wording import quoted

if TYPE_CHECKING:
    from workers.settings import KafkaSettings, Settings

__all__ = ["client_options", "consumer_options", "login_name", "producer_options"]


def client_options(settings: Settings) -> dict[str, object]:
    """Keyword arguments that aiokafka's client and admin client take; certificates and keys are read here.

    Raises ``ConfigError`` where a certificate or key can't be read or used.
    """
    kafka = settings.kafka
    options: dict[str, object] = {
        "bootstrap_servers": settings.bootstrap_servers,
        "client_id": kafka.client_id or settings.application_id,
        "request_timeout_ms": kafka.request_timeout_ms,
        "metadata_max_age_ms": kafka.metadata_max_age_ms,
        "retry_backoff_ms": kafka.retry_backoff_ms,
        "connections_max_idle_ms": kafka.connections_max_idle_ms,
        "security_protocol": kafka.security_protocol,
    }
    if kafka.uses_tls:
        options["ssl_context"] = _ssl_context(settings)
    if kafka.uses_sasl:
        username, password = _login(kafka)
        options["sasl_mechanism"] = kafka.sasl_mechanism
        options["sasl_plain_username"] = username
        options["sasl_plain_password"] = password
    return options


def consumer_options(settings: Settings) -> dict[str, object]:
    """Keyword arguments for an aiokafka consumer in the application's group; offsets are never committed by itself.

    Raises ``ConfigError`` as ``client_options`` does.
    """
    kafka = settings.kafka
    return client_options(settings) | {
        "group_id": settings.application_id,
        "group_instance_id": kafka.group_instance_id,
        "client_rack": kafka.client_rack,
        "enable_auto_commit": False,
        "auto_offset_reset": kafka.auto_offset_reset,
        "isolation_level": kafka.isolation_level,
        "session_timeout_ms": kafka.session_timeout_ms,
        "heartbeat_interval_ms": kafka.heartbeat_interval_ms,
        "rebalance_timeout_ms": kafka.rebalance_timeout_ms,
        "max_poll_interval_ms": kafka.max_poll_interval_ms,
        "fetch_min_bytes": kafka.fetch_min_bytes,
        "fetch_max_wait_ms": kafka.fetch_max_wait_ms,
        "fetch_max_bytes": kafka.fetch_max_bytes,
        "max_partition_fetch_bytes": kafka.max_partition_fetch_bytes,
    }


def producer_options(settings: Settings) -> dict[str, object]:
    """Keyword arguments for an aiokafka producer; idempotent where ``acks`` is ``all``.

    ``transactional_id`` is for the caller to add: it is one per input partition. ``transaction_timeout_ms`` has no
    effect without it. Raises ``ConfigError`` as ``client_options`` does.
    """
    kafka = settings.kafka
    return client_options(settings) | {
        "acks": kafka.acks if kafka.acks == "all" else int(kafka.acks),
        "enable_idempotence": kafka.acks == "all",
        "compression_type": None if kafka.compression_type == "none" else kafka.compression_type,
        "linger_ms": kafka.linger_ms,
        "max_batch_size": kafka.batch_size,
        "max_request_size": kafka.max_request_size,
        "transaction_timeout_ms": kafka.transaction_timeout_ms,
    }


def _ssl_context(settings: Settings) -> ssl.SSLContext:
    """What to trust and how to identify this client, from PEM files. Raises ``ConfigError``."""
    kafka = settings.kafka
    ca = _PemFile(settings, "kafka.ssl.ca.location", kafka.ssl_ca_location)
    certificate = _PemFile(settings, "kafka.ssl.certificate.location", kafka.ssl_certificate_location)
    own_key = _PemFile(settings, "kafka.ssl.key.location", kafka.ssl_key_location)
    for file in (ca, certificate, own_key):
        file.check()
    try:
        context = ssl.create_default_context(cafile=ca.path)
    except ssl.SSLError as error:
        raise ca.error(f"no usable certificate: {error.reason}") from None
    context.check_hostname = kafka.ssl_endpoint_identification_algorithm == "https"
    if certificate.path is None:
        return context
    secret = kafka.ssl_key_password
    key = own_key if own_key.path else certificate

    def passphrase() -> str:
        if secret is None:  # without this OpenSSL would ask the terminal, and a service would hang
            raise key.error("the key is encrypted; set ssl.key.password")
        return secret.get_secret_value()

    try:
        context.load_cert_chain(certificate.path, own_key.path, passphrase)
    except ssl.SSLError as error:
        why = f"certificate and key can't be used together, or the passphrase is wrong: {error.reason}"
        raise key.error(why) from None
    return context


class _PemFile:
    """A file that a setting names, or doesn't: ``path`` is then None."""

    def __init__(self, settings: Settings, key: str, path: str | None) -> None:
        self.path = path
        self._key, self._source = key, settings.source_of(key)

    def check(self) -> None:
        """Raises ``ConfigError`` where it can't be read, or is not PEM."""
        if self.path is None:
            return
        try:
            content = Path(self.path).read_bytes()
        except OSError as error:
            raise self.error(f"can't be read: {error.strerror or type(error).__name__}") from None
        if b"-----BEGIN " not in content:
            raise self.error(f"not a PEM file. {NO_KEYSTORE}")

    def error(self, why: str) -> ConfigError:
        """What to raise: the setting, its value, where that came from, and why it won't do."""
        return ConfigError(f"{self._key} = {quoted(self.path)} ({self._source}): {why}")


def login_name(kafka: KafkaSettings) -> str:
    """The name of the login that the settings have."""
    return _login(kafka)[0]


def _login(kafka: KafkaSettings) -> tuple[str, str]:
    """Name and password; that there are some was checked when the settings were made."""
    if kafka.sasl_jaas_config is not None:
        jaas = parse_jaas(kafka.sasl_jaas_config.get_secret_value())
        return jaas.username, jaas.password
    if kafka.sasl_username is None or kafka.sasl_password is None:
        raise ConfigError("kafka.sasl.username and kafka.sasl.password are not both set; a login needs them")
    return kafka.sasl_username, kafka.sasl_password.get_secret_value()
