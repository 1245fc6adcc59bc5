"""Keeps the host from running ahead of a GPU."""

from __future__ import annotations

import torch


class Throttle:
    """Lets the host be at most one step ahead of its device.

    On a GPU a step is only queued. Without a bound the host would queue all of them: Stop would act only when they are
    done, and a preview would show a step long before it is reached.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._previous: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Call once a step is queued: waits until the step before it is done."""
        if self._device.type != "cuda":
            return
        event = torch.cuda.Event(blocking=True)  # the CPU core is free meanwhile
        event.record(torch.cuda.current_stream(self._device))
        if self._previous is not None:
            self._previous.synchronize()
        self._previous = event
