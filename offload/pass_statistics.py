"""What one pass over a streamed model did, as the layer streamer measured it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PassStatistics:
    """What one complete pass did."""

    seconds: float
    """From begin_pass to end_pass."""
    wait_seconds: float
    """Of these, in `acquire`, waiting for a copy."""
    link_busy_seconds: float
    """With a copy in flight, counted from the end of the previous pass on: prefetching while drafting belongs here."""
    bytes_streamed: int
    """Weight bytes of the streamed layers handed out."""
    num_layers: int
    num_streamed_layers: int
    """Of these, the ones that came through the ring."""
    compute_seconds: float
    """Of the layers' computation: what is left of `seconds` on a host, the device's own time on an accelerator."""
    disk_busy_seconds: float = 0.0
    """As link_busy_seconds, for the disk behind the link; 0 where the link is the disk, or there is none."""
    bytes_read: int = 0
    """Weight bytes that the disk behind the link delivered for them."""
    is_loading: bool = False
    """Whether layers were still to come when it began, so that its times say nothing about other passes."""
    cache_bytes_sent: int = 0
    """Bytes of keys and values that crossed the link with their layers, in time for this pass."""
    cache_bytes_returned: int = 0
    """Bytes of new ones that crossed it back to host memory."""

    @property
    def link_bytes(self) -> int:
        """Everything that crossed the link, in both directions."""
        return self.bytes_streamed + self.cache_bytes_sent + self.cache_bytes_returned
