"""The dashboard: one live page about an application, fed from its topics and its group alone.

    topics, group ──▶ feed ──▶ model ──▶ one View per browser ──▶ WebSocket ──▶ static/*.js

A process of its own that joins no group, commits nothing and writes to no topic, so that nothing it does, or fails to
do, reaches a worker. `model` and `views` are pure and bounded; `feed` reads Kafka; `access` decides who may look;
`server` speaks HTTP. The page is plain HTML, CSS and JavaScript that comes with the package and asks no other host.
"""

from workers.apps.dashboard.model import DashboardModel
from workers.apps.dashboard.readings import Limits
from workers.apps.dashboard.views import View, Wish

__all__ = ["DashboardModel", "Limits", "View", "Wish"]
