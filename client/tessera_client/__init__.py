"""Python client for a Tessera server.

>>> from tessera_client import Client
>>> with Client("http://localhost:8000") as client:
...     result = client.generate("a large red circle at the left on a blue background", seed=7)
>>> result.image.save("out.png")

`Client` and `AsyncClient` speak HTTP and gRPC (`grpc://localhost:8001`). Importing this needs
neither torch nor tensorrt.
"""

from tessera.contract import Info, JobStatus
from tessera.errors import (
    Cancelled,
    InternalError,
    InvalidInput,
    TesseraError,
    TimedOut,
    Unavailable,
    UnknownJob,
)
from tessera_client.adapters import Adapter
from tessera_client.aio import AsyncClient
from tessera_client.bundle import ServedBundle
from tessera_client.capabilities import Busy, Capabilities
from tessera_client.client import Client
from tessera_client.controls import Control
from tessera_client.edits import Region
from tessera_client.messages import Health, Lora
from tessera_client.previews import Preview
from tessera_client.repainting import Repainted
from tessera_client.results import Result
from tessera_client.templates import Recorded

__all__ = [
    "Adapter",
    "AsyncClient",
    "Busy",
    "Cancelled",
    "Capabilities",
    "Client",
    "Control",
    "Health",
    "Info",
    "InternalError",
    "InvalidInput",
    "JobStatus",
    "Lora",
    "Preview",
    "Recorded",
    "Region",
    "Repainted",
    "Result",
    "ServedBundle",
    "TesseraError",
    "TimedOut",
    "Unavailable",
    "UnknownJob",
]
