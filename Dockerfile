# Walcast for a database of yours:
#
#     docker build -t walcast .
#     docker run -p 4000:4000 -e DB_HOST=db -e DB_NAME=app -e DB_USER=walcast -e DB_PASSWORD=secret \
#         -e SLOT_NAME=walcast -e JWT_SECRET=... -v walcast:/var/lib/walcast walcast
#
# The same image runs the parts of a larger installation, by other commands:
#
#     docker run ... walcast walcast run_replicator
#     docker run ... walcast daphne -e tcp:port=4000:interface=0.0.0.0:backlog=4096 realtime_project.asgi:application

FROM python:3.11-slim AS build
WORKDIR /src
COPY requirements.lock ./
# Each file that is installed is the one that the lock knows. What is compiled here need not be at each start.
RUN python -m venv /opt/walcast \
    && /opt/walcast/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY realtime_project ./realtime_project
COPY replication ./replication
COPY streaming ./streaming
COPY templates ./templates
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && /opt/walcast/bin/pip install --no-cache-dir --no-deps /wheels/*.whl \
    && /opt/walcast/bin/pip uninstall --yes pip

FROM python:3.11-slim
COPY --from=build /opt/walcast /opt/walcast
# What was published last is written there: keep the volume, and nothing is lost or sent twice across an update.
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/walcast walcast
ENV PATH=/opt/walcast/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DJANGO_SETTINGS_MODULE=realtime_project.settings \
    WALCAST_HOME=/var/lib/walcast \
    HOST=0.0.0.0
USER 10001
WORKDIR /var/lib/walcast
VOLUME /var/lib/walcast
EXPOSE 4000
# Any answer but a server error will do: ALLOWED_HOSTS need not know the name that is used here.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD ["python", "-c", "import http.client, os, sys; connection = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('PORT') or 4000), timeout=3); connection.request('GET', '/health/live'); sys.exit(connection.getresponse().status >= 500)"]
CMD ["walcast", "realtime"]
