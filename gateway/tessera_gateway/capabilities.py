"""What requests may ask of the server: `GET /v1/capabilities`, for pages and other front ends."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request

from tessera import contract
from tessera_gateway.auth import Authenticated
from tessera_gateway.documentation import errors
from tessera_gateway.openai.schemas import MAX_N
from tessera_gateway.state import gateway_of

router = APIRouter(prefix="/v1", tags=["Capabilities"])


@router.get("/capabilities", responses=errors(401, 503))
async def capabilities(request: Request, caller: Authenticated) -> dict[str, Any]:
    """The bundle with its defaults and limits, LoRAs, ControlNets, and what fields accept; and how
    busy the server is.
    """
    gateway = gateway_of(request)
    content = (await gateway.client.capabilities()).to_dict()
    content["limits"] |= {
        "seed": contract.MAX_SEED - MAX_N,
        "n": MAX_N,
        "body": gateway.settings.max_body,
        "pixels": gateway.settings.max_pixels,
    }
    return content
