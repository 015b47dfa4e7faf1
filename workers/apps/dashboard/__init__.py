"""The dashboard: one live page about an application, fed from its topics and its group alone.

    topics, group ──▶ feed ──▶ model ──▶ one View per browser ──▶ WebSocket ──▶ static/*.js

A process of its own that joins no group, commits nothing and writes to no topic, so that nothing it does, or fails to
do, reaches a worker. `model` and `views` are pure and bounded; `feed` reads Kafka; `access` decides who may look;
`server` speaks HTTP. The page is plain HTML, CSS and JavaScript that comes with the package and asks no other host.

- `bars`: the symbols and their bars: the last frames of each window, packed, and who has traded most
- `group`: the group: its members, its lag and the level that follows from it, and how all of that changed
- `ledger`: the ledger as the page shows it: the newest late ticks and dead letters, and how many of each reason there
  were
- `readings`: what the model of the dashboard is told, and what it tells: readings, rows and bars, each as it was at a
  time
"""

from workers.apps.dashboard.model import DashboardModel
from workers.apps.dashboard.readings import Limits
from workers.apps.dashboard.views import View, Wish

__all__ = ["DashboardModel", "Limits", "View", "Wish"]
