# Tessera on NVIDIA's Triton container. How to build and run it: docs/operations.md#containers
#
#   docker build -t tessera .
#   docker run --rm --init --shm-size=1g --stop-timeout=60 -p 127.0.0.1:8000-8002:8000-8002 tessera   # the demo
#
# The stage `verify` adds what deploy/verify-tensorrt.sh runs, and `ray` what fleets of KubeRay need.
ARG TRITON=26.11

FROM nvcr.io/nvidia/tritonserver:${TRITON}-py3 AS installed
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1
WORKDIR /opt/tessera
COPY pyproject.toml README.md LICENSE ./
COPY python_backend python_backend
COPY build build
COPY client client
COPY gateway gateway
COPY model_repository model_repository
# The root may be read-only at run time, so byte code is written here.
RUN pip install --editable ".[client,build,fleet,serve,tensorrt]" \
 && python3 -m compileall -q python_backend build client gateway model_repository \
 && tessera-build demo --out /bundles/demo \
 && install --directory --owner=1000 --group=1000 /var/tessera
# Templates and every cache of a library: the one place that is written, beside /tmp and /dev/shm.
ENV HOME=/var/tessera XDG_CACHE_HOME=/var/tessera USER=tessera
VOLUME /var/tessera
USER 1000:1000

FROM installed AS verify
COPY bench bench
COPY tests/__init__.py tests/__init__.py
COPY tests/fakes tests/fakes
ENTRYPOINT ["python3", "-m", "bench.tensorrt.run"]

FROM installed AS ray
USER root
RUN pip install --editable ".[ray]"
USER 1000:1000

FROM installed AS serve
EXPOSE 8000 8001 8002
HEALTHCHECK --start-period=120s CMD curl --fail-early --fail --silent 'localhost:8000/v2/models/{encode,render,denoise,decode}/ready'
ENTRYPOINT ["tessera-serve", "--host=0.0.0.0"]
CMD ["/bundles/demo"]
