"""What Open WebUI and SillyTavern send, in their order, and what they read of the answers.

Written from their sources of 2026: `routers/images.py` of Open WebUI (engine `automatic1111`), and
`src/endpoints/stable-diffusion.js` with the extension `stable-diffusion` of SillyTavern.
"""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np

from bench.server import Server
from tessera_client import Client, Lora
from tessera_gateway.sdapi.samplers import SAMPLERS
from tests.samples.sdapi import FrontEnd, opened, pixels
from tests.samples.waiting import again_until

CIRCLE = "a large red circle at the left on a blue background"
OPEN_WEBUI_HEADERS = {"authorization": ""}
SILLY_TAVERN_HEADERS = {"Authorization": "Basic Og=="}


def silly_tavern_body(**changed: Any) -> dict[str, Any]:
    """What its extension makes of its usual settings."""
    return {
        "url": "http://localhost:7860",
        "auth": "",
        "prompt": CIRCLE,
        "negative_prompt": "blurry",
        "sampler_name": "DDIM",
        "scheduler": "normal",
        "steps": 4,
        "cfg_scale": 4,
        "width": 128,
        "height": 128,
        "restore_faces": False,
        "enable_hr": False,
        "hr_upscaler": "Latent",
        "hr_scale": 1.0,
        "hr_additional_modules": [],
        "denoising_strength": 0.7,
        "hr_second_pass_steps": 0,
        "override_settings": {"CLIP_stop_at_last_layers": 1},
        "override_settings_restore_afterwards": True,
        "clip_skip": 1,
        "save_images": True,
        "send_images": True,
        "do_not_save_grid": False,
        "do_not_save_samples": False,
        **changed,
    }


def test_open_webui(server: Server, webui: FrontEnd) -> None:
    """Check the address, list models, choose one, draw two pictures."""
    page = FrontEnd(webui.url, OPEN_WEBUI_HEADERS)
    assert page.send("GET", "options").status == 200  # "verify connection"
    models = [{"id": m["title"], "name": m["model_name"]} for m in page.get("sd-models")]
    assert models == [{"id": "demo", "name": "demo"}]
    options = page.get("options")
    assert options["sd_model_checkpoint"] == models[0]["id"]
    options["sd_model_checkpoint"] = models[0]["name"]
    assert page.send("POST", "options", options).status == 200
    drawn = page.post(
        "txt2img",
        {
            "prompt": CIRCLE,
            "batch_size": 2,
            "width": 128,
            "height": 128,
            "steps": 4,
            "negative_prompt": "blurry",
        },
    )
    assert [opened(image).size for image in drawn["images"]] == [(128, 128)] * 2
    info = json.loads(drawn["info"])
    with Client(server.http) as client:
        for image, seed in zip(drawn["images"], info["all_seeds"], strict=True):
            own = client.generate(
                CIRCLE, negative_prompt="blurry", width=128, height=128, steps=4, seed=seed
            )
            difference = np.asarray(own.image).astype(int) - pixels(image)
            assert np.abs(difference).max() <= 2  # drawn in one batch, or alone
    assert info["all_seeds"][1] == info["all_seeds"][0] + 1


def test_open_webui_with_more_parameters(webui: FrontEnd) -> None:
    """Its administrator may add fields of webui."""
    more = {"sampler_name": "DPM++ 2M", "scheduler": "Karras", "cfg_scale": 3.5, "seed": 7}
    body = {"prompt": CIRCLE, "batch_size": 1, "width": 128, "height": 128, "steps": 3, **more}
    drawn = FrontEnd(webui.url, OPEN_WEBUI_HEADERS).post("txt2img", body)
    info = json.loads(drawn["info"])
    assert (info["seed"], info["cfg_scale"], info["steps"]) == (7, 3.5, 3)
    text = "Steps: 3, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 3.5, Seed: 7"
    assert text in info["infotexts"][0]
    assert opened(drawn["images"][0]).info["parameters"] == info["infotexts"][0]


def test_silly_tavern_fills_its_lists(webui: FrontEnd) -> None:
    page = FrontEnd(webui.url, SILLY_TAVERN_HEADERS)
    assert page.send("GET", "options").status == 200  # ping
    upscalers = [x["name"] for x in page.get("upscalers")]
    upscalers[1:1] = [x["name"] for x in page.get("latent-upscale-modes")]
    assert upscalers == []
    assert [x["model_name"] for x in page.get("sd-vae")] == []
    assert [x["model_name"] for x in page.get("sd-modules")] == []
    samplers = [x["name"] for x in page.get("samplers")]
    offered = [s for s in SAMPLERS if not s.base.startswith("edm_")]  # not for this network
    assert samplers == [sampler.name for sampler in offered]
    assert samplers[:3] == ["DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE"]
    assert {x["name"] for x in page.get("schedulers")} >= {"automatic", "uniform", "karras"}
    assert [x["title"] for x in page.get("sd-models")] == ["demo"]
    assert {"night", "outline"} <= {x["name"] for x in page.get("loras")}


def test_silly_tavern_chooses_a_model(webui: FrontEnd) -> None:
    page = FrontEnd(webui.url, SILLY_TAVERN_HEADERS)
    model = page.get("options")["sd_model_checkpoint"]
    assert page.send("POST", "options", {"sd_model_checkpoint": model}).status == 200
    progress = page.get("progress")
    assert (progress["progress"], progress["state"]["job_count"]) == (0, 0)


def test_silly_tavern_draws(server: Server, webui: FrontEnd) -> None:
    page = FrontEnd(webui.url, SILLY_TAVERN_HEADERS)
    assert "forge_preset" not in page.get("options")
    drawn = page.post("txt2img", silly_tavern_body(prompt=f"<lora:night:0.7>, {CIRCLE}", seed=3))
    with Client(server.http) as client:
        own = client.generate(
            CIRCLE,
            negative_prompt="blurry",
            seed=3,
            steps=4,
            guidance=4,
            width=128,
            height=128,
            scheduler="ddim",
            loras=[Lora("night", 0.7)],
        )
    assert np.array_equal(np.asarray(own.image), pixels(drawn["images"][0]))


def test_silly_tavern_stops(webui: FrontEnd) -> None:
    """Its user closes the page: it asks for the end, and closes its own connection later."""
    page = FrontEnd(webui.url, SILLY_TAVERN_HEADERS)
    answers: list[Any] = []
    body = silly_tavern_body(steps=1000, sampler_name="Heun")
    drawing = threading.Thread(target=lambda: answers.append(page.post("txt2img", body)))
    drawing.start()
    progress = again_until(
        lambda: page.get("progress"),
        lambda told: told["progress"] >= 0.01 and told["current_image"],
    )
    assert progress["state"]["job_count"] == 1
    assert 0 < progress["state"]["sampling_step"] < 1000
    assert progress["state"]["sampling_steps"] == 1000
    assert opened(progress["current_image"]).size[0] > 0
    assert page.get("progress?skip_current_image=true")["current_image"] is None
    assert page.send("POST", "interrupt").status == 200
    drawing.join(300)
    assert answers[0]["images"] == []
    assert json.loads(answers[0]["info"])["interrupted"]
    assert page.get("progress")["progress"] == 0


def test_silly_tavern_with_what_is_not_here(webui: FrontEnd) -> None:
    page = FrontEnd(webui.url, SILLY_TAVERN_HEADERS)
    detailer = {"ADetailer": {"args": [True, True, {"ad_model": "face_yolov8n.pt"}]}}
    for changed, status, sentence in (
        ({"alwayson_scripts": detailer}, 422, "always on script ADetailer not found"),
        ({"enable_hr": True}, 400, "enable_hr is True; accepted: nothing"),
        ({"restore_faces": True}, 400, "restore_faces is True"),
        ({"sampler_name": "Restart"}, 400, "sampler_name is 'Restart'; accepted: DPM++ 2M,"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 99}}, 400, "accepted: an integer"),
        ({"override_settings": {"sd_vae": "my.vae"}}, 400, "override_settings.sd_vae is 'my.vae'"),
        ({"width": 100}, 400, "width is 100; accepted: a multiple of 8"),
        ({"prompt": "a circle <lora:nihgt:1>"}, 400, "<lora> of prompt[0].name is 'nihgt'"),
        ({"prompt": " "}, 400, "prompt is "),
    ):
        answer = page.send("POST", "txt2img", silly_tavern_body(**changed))
        assert (answer.status, set(json.loads(answer.body))) == (status, {"detail"}), answer
        assert sentence in json.loads(answer.body)["detail"]
