"""What `dptrain doctor` starts on several ranks: each adds its number plus one over MPI."""

import dptrain
import dptrain.distributed as dist


def main() -> None:
    """Sum over the ranks; rank 0 prints the result, which tells whether they met."""
    dist.init_process_group("mpi")
    total = dptrain.ones(1) * (dist.get_rank() + 1)
    dist.all_reduce(total)
    if dist.get_rank() == 0:
        print("sum", int(total.item()))


if __name__ == "__main__":
    main()
