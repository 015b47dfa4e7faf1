# One image for every command: docker run ... run | produce | tail | lag | topics | config
# Configured by the environment alone (KAFKA_BOOTSTRAP_SERVERS, WORKERS__WINDOW__SIZE, ...), or by a file mounted at
# /app/config/workers.toml.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/workers
WORKDIR /src
# The dependencies first, against an empty package: a change of the code then costs seconds, not their download.
COPY pyproject.toml README.md ./
RUN mkdir workers && touch workers/__init__.py && /opt/workers/bin/pip install ".[calendars,fast,postgres]" && rm -r workers
COPY workers ./workers
RUN /opt/workers/bin/pip install --no-deps --force-reinstall .

FROM ${BASE}
# A fixed number, so that a cluster that insists on runAsNonRoot can see that it is not 0.
RUN useradd --uid 10001 --no-create-home --home-dir /app --shell /usr/sbin/nologin workers \
 && mkdir -p /app /var/cache/workers && chown workers /var/cache/workers
COPY --from=build /opt/workers /opt/workers
# Compiled kernels are kept here; mount a volume to keep them between containers.
ENV PATH=/opt/workers/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 NUMBA_CACHE_DIR=/var/cache/workers
USER 10001
WORKDIR /app
EXPOSE 9404
ENTRYPOINT ["workers"]
CMD ["--help"]
