# One image for every part: Ray's head and its workers, the driver of a sweep, and MLflow's server.

FROM python:3.11-slim-bookworm AS dependencies
RUN pip install --no-cache-dir --disable-pip-version-check uv==0.13.9 \
    && python -m venv --without-pip /opt/venv
WORKDIR /build
COPY requirements-server.lock ./
# The lock is whole, and leaves out OpenCV's build with windows, which a dependency asks for.
RUN uv pip install --no-cache --compile-bytecode --python /opt/venv/bin/python --no-deps --require-hashes \
    --requirements requirements-server.lock

FROM dependencies AS project
COPY pyproject.toml README.md LICENSE ./
COPY scl_ray scl_ray
RUN uv pip install --no-cache --compile-bytecode --python /opt/venv/bin/python --no-deps --target /app .

FROM python:3.11-slim-bookworm
COPY --from=dependencies /opt/venv /opt/venv
# KubeRay starts Ray from a login shell, which sets PATH anew.
RUN groupadd --gid 1000 scl && useradd --uid 1000 --gid 1000 --create-home scl \
    && install --directory --owner scl --group scl /app /app/data /app/runs /artifacts \
    && echo 'export PATH=/opt/venv/bin:$PATH' > /etc/profile.d/venv.sh
COPY --from=project /app /app
COPY sweeps /app/sweeps
COPY k8s/mlflow_auth.ini /etc/mlflow/auth.ini
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    MLFLOW_DISABLE_TELEMETRY=true \
    MLFLOW_AUTH_CONFIG_PATH=/etc/mlflow/auth.ini
WORKDIR /app
USER 1000:1000
# Of a Ray node; what runs no Ray node sets a check of its own.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:52365/api/local_raylet_healthz', timeout=4)"]
CMD ["python", "sweeps/full_grid.py", "--help"]
