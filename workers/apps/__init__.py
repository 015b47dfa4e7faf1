"""Programs beside the worker: producing, looking into topics, the store, the dashboard, the demo, a broker for tests.

- `broker`: a real broker for tests, demos and benchmarks
- `dashboard`: a live page about an application
- `demo`: the demo
- `inspect`: tail, explain, replay, state
- `produce`: sending ticks: from files, from a pipe, from a synthetic market
- `store`: the store writer: the last frame of each window, in a database
"""
