"""Device function that waits for all programs of a group: the barrier inside a cooperative launch."""

# The interpreter and the compiler both read annotations of `tl.constexpr`: no postponed evaluation here.
import triton
import triton.language as tl

__all__ = ["group_barrier"]


@triton.jit
def group_barrier(arrivals, part, parts):
    """Wait until all of a group's ``parts >= 2`` programs have come here; what they wrote before is visible after.

    ``arrivals`` is an int32 of the group's own, whose lower 31 bits are zero. The parts together add 2**31 to it, which
    flips its top bit only with the last of them: the lower bits are zero again then, and whatever the top one holds, it
    is ready for the next launch, a captured graph's replay too. Nothing on the host has to count launches. Lower bits
    that are not zero would carry into the top one before all have come.
    """
    # The program's threads have all written before the one that arrives does.
    tl.debug_barrier()
    added = tl.where(part == 0, 2147483647 - (parts - 2), 1)
    before = tl.atomic_add(arrivals, added, sem="release", scope="gpu")
    now = tl.atomic_add(arrivals, 0, sem="acquire", scope="gpu")
    while (before ^ now) >= 0:
        now = tl.atomic_add(arrivals, 0, sem="acquire", scope="gpu")
    tl.debug_barrier()
