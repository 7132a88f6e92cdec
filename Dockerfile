FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
# Without pip inside: the image holds the program and what it imports, the prices of language models included. What is
# installed is this directory, whose version is its own.
# hadolint ignore=DL3013
RUN python -m venv --without-pip /opt/gateway \
    && pip --python /opt/gateway/bin/python install --no-cache-dir --no-compile '.[llm]'
# The base image has no bytecode of the standard library: each start and each health check would compile it, and keep 2 MB
# more. Docstrings take another megabyte. So what is installed, and what it imports to serve and to check, is compiled here.
ENV PYTHONOPTIMIZE="2" \
    PYTHONPYCACHEPREFIX="/opt/gateway/bytecode"
RUN /opt/gateway/bin/python -m compileall -q /opt/gateway/lib \
    && /opt/gateway/bin/python -c 'import gateway.healthcheck, gateway.workers, prometheus_client' \
    && /opt/gateway/bin/gateway demo

FROM python:3.13-slim
COPY --from=build /opt/gateway /opt/gateway
ENV PATH="/opt/gateway/bin:$PATH" \
    GATEWAY_LISTEN="0.0.0.0:3000" \
    PYTHONDONTWRITEBYTECODE="1" \
    PYTHONOPTIMIZE="2" \
    PYTHONPYCACHEPREFIX="/opt/gateway/bytecode" \
    PYTHONUNBUFFERED="1"
WORKDIR /
# A number, so that Kubernetes can check runAsNonRoot; any other works as well.
USER 65532:65532
EXPOSE 3000
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s CMD ["gateway", "healthcheck"]
ENTRYPOINT ["gateway"]
