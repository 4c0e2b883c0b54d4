from dataclasses import replace

from runtime.fit.accounting import Accounting, MemoryEntry

ACCOUNTING = Accounting(
    budget_bytes=1000,
    fixed=(MemoryEntry("embeddings", 100), MemoryEntry("draft", 200)),
    ring_bytes=50,
    resident_bytes=300,
    num_resident_layers=3,
    num_host_layers=2,
    host_bytes=70,
    num_disk_layers=4,
    disk_bytes=140,
    baseline_bytes=10,
)


def test_every_byte_of_the_device_is_in_exactly_one_entry() -> None:
    accounting = ACCOUNTING
    assert accounting.fixed_bytes == 300
    assert accounting.device_bytes == 650 == sum(entry.num_bytes for entry in accounting.entries())
    assert accounting.streamed_bytes_per_pass == 210


def test_what_the_first_pass_takes_is_known_apart() -> None:
    """Resident layers have to leave room for it."""
    accounting = replace(
        ACCOUNTING, fixed=(MemoryEntry("embeddings", 100), MemoryEntry("caches", 30, is_taken_late=True))
    )
    assert (accounting.fixed_bytes, accounting.late_bytes) == (130, 30)
