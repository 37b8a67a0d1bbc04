"""Device function that waits for all programs of a group: the barrier inside a cooperative launch."""

# The interpreter and the compiler both read annotations of `tl.constexpr`: no postponed evaluation here.
import triton
import triton.language as tl

__all__ = ["group_barrier"]


@triton.jit
def group_barrier(arrivals, part, parts):
    """Wait until all of a group's ``parts`` programs have come here; what they wrote before is visible after.

    ``arrivals`` is an int32 of the group's own, whose lower 31 bits are zero. The parts together add 2**31 to it, which
    flips its top bit only with the last of them: the lower bits are zero again then, and whatever the top one holds, it
    is ready for the next launch, a captured graph's replay too. Nothing on the host has to count launches. Lower bits
    that are not zero would carry into the top one before all have come.
    """
    # The program's threads have all written before the one that arrives does.
    tl.debug_barrier()
    added = tl.where(part == 0, 2147483647 - (parts - 2), 1)  # Of one part alone 2**31, which wraps.
    # Release: what the program wrote is seen by those that acquire the count later.
    before = tl.atomic_add(arrivals, added, sem="release", scope="gpu")
    now = before
    while (before ^ now) >= 0:
        # Acquire: one thread asks. The others get its answer at a barrier, so that they see what it may see.
        now = tl.atomic_add(arrivals, 0, sem="acquire", scope="gpu")
