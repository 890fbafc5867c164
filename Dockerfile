# One image for every part: Ray's head and its workers, the driver of a sweep, and MLflow's server.

FROM python:3.11-slim-bookworm AS requirements
COPY pyproject.toml .
# Only what is asked for, so that the layer below stays when anything else in the file changes. OpenCV is the build
# without windows, for which there are no libraries here.
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*project['dependencies'], *project['optional-dependencies']['server'], 'opencv-python-headless', sep='\n')" > requirements.txt \
    && echo 'opencv-python ; sys_platform == "none"' > overrides.txt

FROM python:3.11-slim-bookworm AS dependencies
RUN pip install --no-cache-dir --disable-pip-version-check uv==0.13.9 \
    && python -m venv --without-pip /opt/venv
WORKDIR /build
COPY requirements.lock ./
COPY --from=requirements requirements.txt overrides.txt ./
# The lock as constraints: its versions and hashes hold for what is installed, and the tests' tools stay out.
RUN uv pip install --no-cache --compile-bytecode --python /opt/venv/bin/python \
    --requirements requirements.txt --overrides overrides.txt --constraints requirements.lock

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
