"""Host memory that a device can copy from: page-locked, within what the machine allows."""
