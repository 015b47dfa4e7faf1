"""What a process tells of itself: metrics, health, logs.

- `health`: `/metrics`, `/healthz` and `/readyz` over HTTP
- `logs`: logging for people and for machines
- `metrics`: the catalogue of series
- `spared`: of many messages alike, which are logged
"""
