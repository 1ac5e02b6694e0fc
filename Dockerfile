# Tessera on NVIDIA's Triton container.
#
#   docker build -t tessera .
#   docker run --rm --shm-size=1g --stop-timeout=60 -p 8000-8002:8000-8002 tessera      # the demo bundle
#   with a bundle of one's own, a GPU and kept templates: docs/operations.md
FROM nvcr.io/nvidia/tritonserver:26.02-py3
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1
COPY . /opt/tessera
RUN pip install --editable "/opt/tessera[client,build,serve]" \
 && tessera-build demo --out /bundles/demo
EXPOSE 8000 8001 8002
HEALTHCHECK --start-period=120s CMD curl --fail-early --fail --silent 'localhost:8000/v2/models/{encode,render,denoise,decode}/ready'
ENTRYPOINT ["tessera-serve"]
CMD ["/bundles/demo"]
