"""What a GPU's clock does while it is measured, by NVIDIA's nvidia-ml-py. The card's settings are never changed."""

from __future__ import annotations

from typing import Any

from hwnas.errors import HwnasError, MissingExtra
from hwnas.optional import require

# Reasons for which the clock is below what the card runs at otherwise (NVML's nvmlClocksEventReasons): hardware
# slowdown, software thermal slowdown, hardware thermal slowdown, power brake. Not the cap on power (4): a card that
# meets it under some load meets it there always, so that is the speed of that load.
THROTTLED = {0x08: "hardware slowdown", 0x20: "heat", 0x40: "heat, by the hardware", 0x80: "power brake"}


class Watch:
    """Reads the clock of one GPU."""

    def __init__(self, pci_bus_id: str) -> None:
        """Find a GPU by where it sits.

        Raises:
            MissingExtra: If nvidia-ml-py is not installed.
            HwnasError: If there is no NVML, or it does not know the GPU.
        """
        self._nvml: Any = require("pynvml", extra="cuda")
        try:
            self._nvml.nvmlInit()
            self._device = self._nvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id.encode())
        except self._nvml.NVMLError as e:
            raise HwnasError(f"NVML cannot read the clock of the GPU at {pci_bus_id}: {e}") from e

    def facts(self) -> dict[str, Any]:
        """Return what tells this card and its settings from others; a value is None where the card does not tell."""
        nvml, device = self._nvml, self._device
        watts = self._ask(nvml.nvmlDeviceGetEnforcedPowerLimit, device)
        return {
            "driver": _text(self._ask(nvml.nvmlSystemGetDriverVersion)),
            "uuid": _text(self._ask(nvml.nvmlDeviceGetUUID, device)),
            "max_sm_mhz": self._ask(nvml.nvmlDeviceGetMaxClockInfo, device, nvml.NVML_CLOCK_SM),
            "power_limit_w": None if watts is None else watts / 1000,
        }

    def sm_mhz(self) -> int | None:
        """Return the clock of the multiprocessors now; None where the card does not tell."""
        found: int | None = self._ask(self._nvml.nvmlDeviceGetClockInfo, self._device, self._nvml.NVML_CLOCK_SM)
        return found

    def throttled(self) -> str | None:
        """Return why the clock is kept down, None if it is not or the card does not tell."""
        newer = getattr(self._nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
        reasons = self._ask(newer or self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons, self._device)
        return next((why for bit, why in THROTTLED.items() if (reasons or 0) & bit), None)

    def close(self) -> None:
        """Give NVML back."""
        self._nvml.nvmlShutdown()

    def _ask(self, call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except self._nvml.NVMLError:  # older cards and virtual ones know less
            return None


def open_watch(pci_bus_id: str) -> tuple[Watch | None, str]:
    """Return a watch, or None and why there is none: measuring goes on without, and says so."""
    try:
        return Watch(pci_bus_id), ""
    except (HwnasError, MissingExtra) as e:
        return None, str(e)


def _text(value: Any) -> str | None:
    return value.decode() if isinstance(value, bytes) else value
