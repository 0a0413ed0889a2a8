"""Parts of `gpu.py` that call a denoiser: overhead, conformance, sampling, and NeMo's search."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from experiment import ROOT
from gpu_shapes import Part, random_pipeline, release
from localization import WAYS, measure, planted_predictor
from probe_overhead import Bench
from torch import Tensor, nn

from memtrain.detectors.guidance_norm import GuidanceNorm
from memtrain.evaluation.sampling.generate import Trace, generate, read_prompts_with
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.models.observation import Observation
from memtrain.models.pipeline import load_pipeline
from memtrain.models.probe import DenoiserProbe
from memtrain.models.transfer import HostCopy

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Largest error of a token's attention (a share of 1) on the GPU against double precision on the CPU."""


def overhead(part: Part) -> None:
    """A training step with nothing, with the probe, and with the probe and the monitor's readings, in turn."""
    for shape, batch in (("sd15", 8),) if part.smoke else (("sd15", 8), ("sdxl", 4)):
        bench: list[Bench] = []

        def build(shape: str = shape, batch: int = batch, bench: list[Bench] = bench) -> dict[str, Any]:
            size = {"batch": 2, "latents": 8} if part.smoke else {"batch": batch, "latents": 64}
            with part.device:
                bench.append(Bench("tiny_sd" if part.smoke else shape, device=part.device.type, **size))
            return {"parameters": sum(p.numel() for p in bench[0].unet.parameters()), **size}

        part.attempt(f"{shape}_build", build)
        for checkpointing in (True, False):
            if bench:
                name = f"{shape}_checkpointing" if checkpointing else shape
                part.attempt(name, lambda b=bench[0], c=checkpointing: _ratios(part, b, c))  # type: ignore[misc]
        bench.clear()
        release(part.device)


def _ratios(part: Part, bench: Bench, checkpointing: bool) -> dict[str, Any]:
    ways, unet = ("plain", "probe", "watched"), bench.unet
    if checkpointing:
        unet.enable_gradient_checkpointing()
    else:
        unet.disable_gradient_checkpointing()
    peaks = {}
    for way in ways:
        bench.step(way)
        peaks[f"peak_gib_{way}"] = part.peak_of(lambda way=way: bench.step(way))  # type: ignore[misc]
    # Each case has about 20 s.
    pairs = 1 if part.smoke else max(5, min(40, int(20 / 3 / bench.step("plain"))))
    return {**bench.compare(pairs, ways), **peaks}


def conformance(part: Part) -> None:
    """Readings on the GPU against double precision on the CPU, the gate's exactness, and torch.compile."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    families = _families()
    for dtype in TOLERANCE:
        kind = str(dtype).removeprefix("torch.")
        for family in ("unet", "sdxl", "pixart", "sd3", "flux"):
            part.attempt(f"{family}_{kind}", lambda f=family, d=dtype: _reads(part, families, f, d))  # type: ignore[misc]
    for family in ("unet", "sd3"):
        part.attempt(f"gate_{family}", lambda f=family: _gate(part, families, f))  # type: ignore[misc]
    part.attempt("autocast_unet", lambda: _reads(part, families, "unet", torch.bfloat16, autocast=True))
    part.attempt("host_copy", lambda: _host_copy(part))
    part.attempt("compiled_unet", lambda: _compiled(part, families))


def _families() -> Any:
    """tests/conformance/families.py."""
    spec = importlib.util.spec_from_file_location("families", ROOT / "tests" / "conformance" / "families.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)
    return {key: _moved(one, device, dtype) for key, one in value.items()} if isinstance(value, dict) else value


def _observe(
    model: nn.Module, call: dict[str, Any], gate: Callable[[Observation], Tensor] | None = None
) -> Observation:
    with DenoiserProbe(model, sites="*") as probe:
        probe.begin(Observation(["a", "b", "c"]), gate)
        model(**call).sample.float().square().mean().backward()
        return probe.end()


def _difference(found: Observation, expected: Observation) -> dict[str, Any]:
    pairs = zip(found.token_attention.values(), expected.token_attention.values(), strict=True)
    differences = [float((a.double().cpu() - b.double().cpu()).abs().max()) for a, b in pairs]
    return {"sites": len(differences), "largest_difference": max(differences)}


def _judged(found: dict[str, Any], tolerance: float) -> dict[str, Any]:
    within = found["largest_difference"] <= tolerance
    return found | {"tolerance": tolerance, "passed": within}


def _reads(part: Part, families: Any, family: str, dtype: torch.dtype, autocast: bool = False) -> dict[str, Any]:
    """The weights are rounded to `dtype` first (not under autocast), and so are the inputs."""
    rounded = torch.float32 if autocast else dtype
    exact = families.build(family).to(rounded).double()
    call = _moved(families.call(family)[0], torch.device("cpu"), rounded)
    expected = _observe(exact, _moved(call, torch.device("cpu"), torch.float64))
    model = families.build(family).to(part.device, rounded)
    moved = _moved(call, part.device, rounded)
    if autocast:
        with part.autocast(dtype):
            found = _observe(model, moved)
    else:
        found = _observe(model, moved)
    assert found.gradient is not None
    finite = bool(found.gradient.isfinite().all())
    return _judged({**_difference(found, expected), "gradient_finite": finite}, TOLERANCE[dtype])


def _gate(part: Part, families: Any, family: str) -> dict[str, Any]:
    """Gated gradients against those of the re-weighted loss, with the difference of two equal runs beside."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    weights = torch.tensor([1.0, 0.0, 1.0], device=part.device)
    model = families.build(family).to(part.device)
    call = _moved(families.call(family)[0], part.device, torch.float32)

    def gradients(run: Callable[[], Any]) -> list[Tensor]:
        model.zero_grad()
        run()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    def by_hand() -> None:
        prediction = model(**call).sample
        sample_loss = prediction.square().flatten(1)
        (sample_loss * weights[:, None]).mean().backward()

    gated = gradients(lambda: _observe(model, call, lambda seen: weights))
    expected, again = gradients(by_hand), gradients(by_hand)
    torch.use_deterministic_algorithms(False)

    def largest(found: list[Tensor]) -> float:
        return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))

    found = {"largest_difference": largest(gated), "difference_of_two_equal_runs": largest(again)}
    return found | {"exact": found["largest_difference"] == 0, "passed": found["largest_difference"] == 0}


def _host_copy(part: Part) -> dict[str, Any]:
    values = torch.randn(64, 9, device=part.device)
    copies = [(HostCopy(values * n), values * n) for n in range(100)]
    return {"passed": all(torch.equal(copy.read(), truth.cpu()) for copy, truth in copies)}


def _compiled(part: Part, families: Any) -> dict[str, Any]:
    call = _moved(families.call("unet")[0], part.device, torch.float32)
    expected = _observe(families.build("unet").to(part.device), call)
    model = families.build("unet").to(part.device)
    with DenoiserProbe(model, sites="*") as probe:
        compiled = torch.compile(model, backend="eager" if part.smoke else "inductor")
        probe.begin(Observation(["a", "b", "c"]))
        compiled(**call).sample.square().mean().backward()
        found = probe.end()
    return _judged(_difference(found, expected), 1e-5)


def sampling(part: Part) -> None:
    """Images per second, and what a one-step score costs against the whole sampling, by precision."""
    folder = random_pipeline(part)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        part.attempt(name, lambda d=dtype: _sampling(part, str(folder), d))  # type: ignore[misc]


def _sampling(part: Part, folder: str, dtype: torch.dtype) -> dict[str, Any]:
    pipeline: Any = load_pipeline(folder, dtype=dtype)
    pipeline.to(part.device)
    images, steps = (2, 3) if part.smoke else (8, 20)
    settings = Sampling(seeds=range(images), steps=steps, batch_size=images, progress=False)
    detectors, prompts = [GuidanceNorm()], ["a red house"]
    trace = generate(pipeline, prompts, sampling=replace(settings, steps=2))
    early = read_prompts_with(pipeline, prompts, detectors, sampling=settings)[detectors[0].name]
    full: list[float] = []
    one_step: list[float] = []
    for _ in range(1 if part.smoke else 2):
        full.append(part.timed(lambda: generate(pipeline, prompts, sampling=settings)))
        one_step.append(part.timed(lambda: read_prompts_with(pipeline, prompts, detectors, sampling=settings)))
    watched: list[Trace] = []
    peak = part.peak_of(lambda: watched.append(generate(pipeline, prompts, detectors=detectors, sampling=settings)))
    late = watched[0].readings[detectors[0].name]
    return {
        "images": images,
        "steps": steps,
        "images_per_second": images / min(full),
        "seconds_full": min(full),
        "seconds_one_step_score": min(one_step),
        "times_faster": min(full) / min(one_step),
        "scores_finite": bool(early.isfinite().all()),
        "scores_equal": bool(torch.allclose(early, late, rtol=1e-3)),
        "image_values": [int(trace.images.min()), int(trace.images.max())],
        "peak_gib": peak,
    }


def nemo(part: Part) -> None:
    """NeMo's search on a random UNet with latents of 64 x 64: as published, and the default."""
    size, most = (8, 1) if part.smoke else (64, 2)
    few: dict[str, Any] = {"seeds": 3, "initial_theta": 2.0, "theta_step": 1.0} if part.smoke else {}
    names = ("as published", "default", "binary split")
    ways = {name: replace(WAYS[name], **few) for name in names}
    predictor = planted_predictor(size, part.device.type)
    others = [f"other {number}" for number in range(20 if part.smoke else 60)]
    prompts = [f"memorized {number}" for number in range(40)]
    # The first search pays for loading kernels, and is not kept.
    measure(
        predictor,
        prompts,
        others,
        most=1,
        threshold=0.6 if part.smoke else 0.3,
        ways=dict.fromkeys(names, ways["default"]),
    )
    found = measure(predictor, prompts, others, most=most, threshold=0.6 if part.smoke else 0.3, ways=ways)
    part.add(prompts=found["prompts"], latents=found["latents"], **found["ways"])
