"""A step as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch


def captured(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Return a function that replays a step from a CUDA graph; on a CPU, which has none, the step."""
    if device.type != "cuda":
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
