# syntax=docker/dockerfile:1
# trainwire-server for a GPU; without one it trains on the CPU. docs/operations.md, "Deploy".

# Both stages have the same base: the environment that the first makes runs in the second. CUDA's
# libraries come with torch, in the versions it was built with, so the base is the one without them.
# Where images are built for production, name the base by its digest:
# --build-arg BASE=nvidia/cuda@sha256:...
ARG BASE=nvidia/cuda:13.0.2-base-ubuntu24.04

FROM ${BASE} AS build
# Versions of packages of the base are those of its snapshot of Ubuntu: the tag above, or its digest.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/trainwire
COPY deploy/requirements.txt /source/deploy/
# Apart from the source, so that a changed line of it does not fetch torch again. No compiler is
# here: all comes as wheels.
RUN /opt/trainwire/bin/pip install --no-cache-dir --only-binary=:all: \
    -r /source/deploy/requirements.txt
COPY pyproject.toml README.md LICENSE CHANGELOG.md /source/
COPY proto /source/proto
COPY client /source/client
COPY server /source/server
RUN /opt/trainwire/bin/pip install --no-cache-dir \
    -c /source/deploy/requirements.txt "/source[cli,otel,server]" \
    && /opt/trainwire/bin/pip check

FROM ${BASE}
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --system --gid 10001 trainwire \
    && useradd --system --uid 10001 --gid trainwire --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin trainwire \
    && install -d -o trainwire -g trainwire -m 0700 /var/lib/trainwire
COPY --from=build /opt/trainwire /opt/trainwire
ENV PATH=/opt/trainwire/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    TRAINWIRE_DATA_DIR=/var/lib/trainwire \
    TRAINWIRE_LISTEN=0.0.0.0:50051 \
    TRAINWIRE_LOG_FORMAT=json \
    TRAINWIRE_TARGET=127.0.0.1:50051
# By number: Kubernetes cannot tell that a name is not root's.
USER 10001:10001
VOLUME /var/lib/trainwire
EXPOSE 50051
STOPSIGNAL SIGTERM
# gRPC health. With TLS it needs the CA, in TRAINWIRE_TARGET_CA, and a certificate that names
# 127.0.0.1, or TRAINWIRE_TARGET with a name that it has.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["trainwire", "health"]
ENTRYPOINT ["trainwire-server"]
