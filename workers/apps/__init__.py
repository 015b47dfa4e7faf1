"""Programs beside the worker: producing, looking into topics, the store, the dashboard, the demo, a broker for
tests."""
