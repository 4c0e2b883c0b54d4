"""A probing child that meets one of the drivers in `fake_driver`, named in the place of a device."""

import sys
from unittest import mock

from offload.pinning import pin_probe
from offload.pinning.pinned_memory import PinnedMemory
from tests.support import fake_driver

if __name__ == "__main__":
    driver = getattr(fake_driver, sys.argv[1])()
    with (
        mock.patch.object(pin_probe, "STEP_BYTES", 1 << 20),
        mock.patch.object(pin_probe.torch, "device"),
        mock.patch.object(pin_probe, "open_pinner", lambda *_, **__: PinnedMemory(driver, None, patience_seconds=None)),
    ):
        pin_probe.run_child()
