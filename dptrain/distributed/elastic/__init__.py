"""`torch.distributed.elastic`'s place for `multiprocessing.errors.record`; starting ranks is `dprun`'s work."""
