# The dispatcher: docker build -t ai-model-dispatcher .
# Runs as nobody in particular, writes only to /var/lib/dispatcher (history) and /tmp, and works with a read-only root.

FROM python:3.12.8-slim-bookworm AS build
COPY requirements.lock /build/requirements.lock
RUN python -m venv /opt/dispatcher/venv \
    && /opt/dispatcher/venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check --require-hashes \
        -r /build/requirements.lock
COPY dispatcher /opt/dispatcher/lib/dispatcher
COPY exporter /opt/dispatcher/lib/exporter
# The page shows it: dispatcher/api/page/runbook.md is a link to it.
COPY prometheus/runbook.md /opt/dispatcher/lib/prometheus/runbook.md
RUN /opt/dispatcher/venv/bin/python -m compileall -q /opt/dispatcher/lib \
    && install -d -o 10001 -g 10001 -m 750 /build/state

FROM python:3.12.8-slim-bookworm
COPY --from=build /opt/dispatcher /opt/dispatcher
# A new volume takes its owner from here.
COPY --from=build --chown=10001:10001 /build/state /var/lib/dispatcher
ENV PATH=/opt/dispatcher/venv/bin:$PATH \
    PYTHONPATH=/opt/dispatcher/lib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/var/lib/dispatcher
USER 10001:10001
WORKDIR /var/lib/dispatcher
VOLUME /var/lib/dispatcher
EXPOSE 11435 9435
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:11435/livez', timeout=4)"]
# -P: a file in the working directory must not shadow an import.
ENTRYPOINT ["python", "-P", "-m", "dispatcher"]
CMD ["run"]
