# The server of a bundle, without torch:
#   docker build -t nanonet .
#   docker run --rm -p 8000:8000 -v "$PWD/bundle:/bundle:ro" nanonet
FROM python:3.12-slim AS build
COPY pyproject.toml README.md LICENSE /source/
COPY src /source/src
# Without pip in it: the server needs none.
RUN python -m venv --without-pip /venv \
    && pip --python /venv/bin/python install --no-cache-dir "/source[serve]"

FROM python:3.12-slim
COPY --from=build /venv /venv
ENV PATH="/venv/bin:$PATH" PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["nanonet", "serve", "/bundle", "--host", "0.0.0.0", "--port", "8000"]
