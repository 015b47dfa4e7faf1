"""The cluster from outside the data path: reaching it, its topics, and how far the group is behind.

What can't be done is said in terms of the user's settings; aiokafka's own errors name neither the address nor the
setting, and its client logs the reason of a failed connection instead of raising it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.conn import create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    NodeNotReadyError,
    NotCoordinatorError,
    RequestTimedOutError,
    SaslAuthenticationFailed,
    TopicAlreadyExistsError,
    UnsupportedSaslMechanismError,
    for_code,
)
from aiokafka.structs import TopicPartition
from aiokafka.util import get_running_loop as _client_loop

from workers.errors import BrokerError, ConfigError, TopicError
from workers.settings import client_options

if TYPE_CHECKING:
    from workers.settings import Settings
