# The packages go into a virtual environment without pip; the image that runs has neither pip's cache nor the tests' packages.
FROM python:3.13-slim AS packages
COPY requirements.lock .
RUN python -m venv --without-pip /venv \
 && pip --python /venv/bin/python install --require-hashes --only-binary=:all: --no-cache-dir --no-compile -r requirements.lock

FROM python:3.13-slim
# The journal's directory belongs to the user before a volume is mounted there: a new named volume takes over its owner.
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin visits \
 && install -d -m 0700 -o visits -g visits /data
COPY --from=packages /venv /venv
WORKDIR /app
COPY wsgi.py gunicorn.conf.py ./
COPY config config
COPY visit_counter visit_counter
RUN /venv/bin/python -m compileall -q /app /venv/lib
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 FLASK_APP=wsgi VISITS_DATA_DIR=/data
USER visits
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
# Longer than gunicorn's graceful_timeout: docker stop -t 40. compose.yaml says so for its own.
CMD ["gunicorn", "-b", "0.0.0.0:8000", "wsgi:app"]
