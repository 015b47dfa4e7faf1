# One image for every command: docker run ... run | produce | tail | lag | topics | config
# Configured by the environment alone (KAFKA_BOOTSTRAP_SERVERS, WORKERS__WINDOW__SIZE, ...), or by a file mounted at
# /app/config/workers.toml.
ARG BASE=python:3.11-slim
# Compiles the native lane, with cargo 1.88 or newer; its Debian is no newer than that of BASE, whose C library has to do.
ARG RUST=rust:1-slim-bookworm

FROM ${RUST} AS wheel
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN apt-get update && apt-get install --yes --no-install-recommends python3-venv && python3 -m venv /opt/build
WORKDIR /src
# The crate first, for an empty package: a change of the Python code then compiles nothing.
COPY pyproject.toml setup.cfg README.md ./
COPY native ./native
RUN mkdir workers && touch workers/__init__.py && /opt/build/bin/pip wheel --no-deps --wheel-dir /tmp . && rm -r workers build
COPY workers ./workers
RUN /opt/build/bin/pip wheel --no-deps --wheel-dir /wheels .

FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/workers
WORKDIR /src
# The dependencies first, of an empty package too: a change of the code then costs seconds, not their download.
COPY pyproject.toml README.md ./
RUN mkdir workers && touch workers/__init__.py && /opt/workers/bin/pip install ".[calendars,postgres]"
COPY --from=wheel /wheels /wheels
# An install without the native lane is an install; an image without it is none.
RUN /opt/workers/bin/pip install --no-deps --force-reinstall /wheels/*.whl \
 && cd / && /opt/workers/bin/python -c 'import workers._native'

FROM ${BASE}
# A fixed number, so that a cluster that insists on runAsNonRoot can see that it is not 0.
RUN useradd --uid 10001 --no-create-home --home-dir /app --shell /usr/sbin/nologin workers && mkdir -p /app
COPY --from=build /opt/workers /opt/workers
ENV PATH=/opt/workers/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# The base image comes without the bytecode of the standard library, which every start would compile again.
RUN PYTHONDONTWRITEBYTECODE= workers --help && PYTHONDONTWRITEBYTECODE= python -c 'import asyncio, workers.worker.main'
USER 10001
WORKDIR /app
EXPOSE 9404
ENTRYPOINT ["workers"]
CMD ["--help"]
